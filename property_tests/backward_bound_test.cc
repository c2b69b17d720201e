// The backward bounds: no kernel that keeps its contract may violate one, on any family of inputs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

#include "harness/judging/outputs.h"
#include "oracle/backward_verdict.h"
#include "problem/parallel.h"
#include "testing/emulated_kernel.h"
#include "testing/matchers.h"

namespace assay {
namespace {

const char* const features[] = {
    "",
    " causal offset=end",
    " softcap=1.5",
    " softcap=30 causal",
    " sink=2",
    " alibi causal offset=end",
    " alibi bias=normal@hij",
    " bias=large@ij",
    " dropout=0.4:9",
    " bias=normal@j window=9,4",
    " docs=5,30 bool=random",
    " softcap=20 alibi bias=normal@bij sink=6 dropout=0.2:3 causal offset=end",
    " dlse=normal",
    " sink=2 dlse=huge causal"};

struct Tightness {
  std::map<Output, double> ratio;
  std::int64_t elements = 0, excused = 0;
};

class EmulatedBackward : public testing::TestWithParam<Dtype> {};

TEST_P(EmulatedBackward, NeverViolatesTheBoundOfItsContract) {
  const Dtype dtype = GetParam();
  std::vector<Emulation> all = emulations(dtype);
  // Splits of the forward pass affect only O and LSE, which are given here.
  std::erase_if(all, [](const Emulation& e) { return e.contract.split_keys > 0; });
  Emulation blocked = all[0];
  blocked.contract.name = "fp32, fma, sums over tiles";
  blocked.contract.backward_row_tile = 8;
  blocked.contract.backward_tile = 32;
  all.push_back(blocked);
  for (const Emulation& e : all) {
    std::vector<Case> cases;
    std::uint64_t seed = 1;
    for (int s = 0; s < count_of<Scores>; ++s)
      for (const char* feature : features) {
        Case c = parse_case("backward b=2 h=2/1 l=" + std::to_string(seed % 3 ? 9 : 21) + "x" +
                            std::to_string(seed % 2 ? 75 : 40) +
                            " d=" + std::to_string(seed % 5 ? 24 : 40) + "/12" + feature);
        c.dtype = dtype;
        c.scores = static_cast<Scores>(s);
        c.values = static_cast<Values>((s + static_cast<int>(seed)) % count_of<Values>);
        c.gradient = static_cast<Values>((3 * s + static_cast<int>(seed) * 5) % count_of<Values>);
        c.seed = seed++;
        cases.push_back(c);
      }
    std::mutex mutex;
    Tightness tight;
    parallel_for(static_cast<Index>(cases.size()), 0, [&](Index k) {
      const Case& c = cases[usize(k)];
      const Inputs inputs(c);
      const Outputs forward(c);
      const GradientOutputs gradients(c, inputs);
      run_emulated(e, inputs.problem, forward.view());
      const AttentionBackwardInput in{forward.o.view(), forward.lse.view(), inputs.d_o.view(),
                                      inputs.d_lse.view()};
      run_emulated_backward(e, inputs.problem, in, gradients.view());
      const Verdict v = judge_backward(inputs.problem, in, gradients.view(), e.contract);
      const std::lock_guard lock(mutex);
      EXPECT_THAT(v, HasNothingOutside()) << print_case(c);
      for (const auto& [output, compared] : v.outputs) {
        tight.ratio[output] = std::max(tight.ratio[output], compared.worst.ratio);
        tight.elements += compared.elements;
      }
      for (const auto& [reason, n] : v.excused) tight.excused += n;
      tight.excused += v.hull_only;
    });
    std::string ratios;
    for (const auto& [output, ratio] : tight.ratio)
      ratios += " " + std::string(name_of(output)) + " " + std::to_string(ratio).substr(0, 5);
    printf("%-8s %-42s %8ld elements, largest error/bound%s, excused %ld\n",
           std::string(format(dtype).name).c_str(), e.contract.name.c_str(),
           static_cast<long>(tight.elements), ratios.c_str(), static_cast<long>(tight.excused));
    EXPECT_GT(tight.elements, 100000);
    EXPECT_LT(tight.excused, tight.elements / 2) << e.contract.name;
    EXPECT_EQ(tight.ratio.size(), 5u);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, EmulatedBackward,
                         testing::Values(Dtype::f32, Dtype::f16, Dtype::bf16),
                         [](const auto& test) { return std::string(format(test.param).name); });

}  // namespace
}  // namespace assay

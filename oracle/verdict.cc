#include "oracle/verdict.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace assay {

std::string describe(const Element& e) {
  std::string place;
  switch (e.output) {
    case Output::lse: place = fmt::format("LSE[b={}, h={}, row={}]", e.b, e.h, e.row); break;
    case Output::d_sink: place = fmt::format("dSink[h={}]", e.h); break;
    case Output::c: place = fmt::format("C[row={}, column={}]", e.row, e.column); break;
    case Output::w: place = fmt::format("W[k={}, n={}]", e.row, e.column); break;
    case Output::dk:
    case Output::dv:
      place = fmt::format("{}[b={}, h={}, key={}, column={}]", name_of(e.output), e.b, e.h, e.row,
                          e.column);
      break;
    case Output::d_bias:
      place = fmt::format("dBias[b={}, h={}, row={}, key={}]", e.b, e.h, e.row, e.column);
      break;
    default:
      place = fmt::format("{}[b={}, h={}, row={}, column={}]", name_of(e.output), e.b, e.h, e.row,
                          e.column);
  }
  return fmt::format("{}: {} = {:.9g}, exact {:.9g}, bound {:.3g}", e.why, place, e.got, e.exact,
                     e.bound);
}

std::string told_conventions(const Conventions& differs) {
  std::vector<std::string> told;
  for (const Convention c : values_of<Convention>)
    if (differs.declares(c))
      told.push_back(fmt::format("{} ({})", name_of_value(c, differs.index(c)), row_of(c).what));
  return fmt::format("differs by convention: {}; accept it with convention={}",
                     fmt::join(told, ", "), fmt::join(differs.names(), ","));
}

void GradientPower::add(const GradientPower& other) {
  for (auto count : {&GradientPower::pairs, &GradientPower::by_dq, &GradientPower::by_dk,
                     &GradientPower::by_dv, &GradientPower::by_any})
    this->*count += other.*count;
}

std::int64_t Verdict::compared(Output output) const {
  const auto it = outputs.find(output);
  return it == outputs.end() ? 0 : it->second.elements;
}

std::int64_t Verdict::compared() const {
  std::int64_t all = 0;
  for (const auto& [output, part] : outputs) all += part.elements;
  return all;
}

const Element* Verdict::worst(Output output) const {
  const auto it = outputs.find(output);
  return it == outputs.end() || !(it->second.worst.bound > 0) ? nullptr : &it->second.worst;
}

double Verdict::worst_ratio(Output output) const {
  const Element* e = worst(output);
  return e ? e->ratio : 0;
}

}  // namespace assay

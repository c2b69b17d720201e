// Inside cli/: the part of `assay check` that judges a solution of FlashInfer-Trace.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace assay {

struct DefinitionOptions {
  std::string definition;  // a file; empty: no solution is judged
  std::string workload, solution, trace, root, causal;
  bool coverage = false;
};

void add_definition(CLI::App& check, DefinitionOptions& o);

// Judges the solution, by the module assay.flashinfer, which prints what it finds. `shared` are the
// options that it has in common with other candidates. Returns the exit status. Throws UsageError
// where an option was given that means nothing for a solution.
int check_definition(const CLI::App& check, const DefinitionOptions& o,
                     const std::vector<std::string>& shared);

}  // namespace assay

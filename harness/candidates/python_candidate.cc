#include "harness/candidates/python_candidate.h"

#include "harness/candidates/named_candidate.h"
#include "harness/candidates/python_process.h"

namespace assay {

std::unique_ptr<Candidate> make_python_candidate(const std::string& where) {
  const auto process = std::make_shared<PythonProcess>(where);
  return std::make_unique<NamedCandidate>(
      NamedCandidate::Facts{.name = "python:" + where,
                            .features = Features(process->features()),
                            .lse = process->lse(),
                            .contracts = process->contracts(),
                            .own_process = true,
                            .conventions = process->conventions(),
                            .remarks = process->remarks()},
      [process](const NamedCall& call) { process->run(call); });
}

}  // namespace assay

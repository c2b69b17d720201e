// Inside judge/: keys and values in pages become tensors.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "judge/tensors.h"

namespace assay::judging {

// Turns the line and the tensors of `decode` into those of `attention`: k and v are gathered from
// the pages, and without another offset the rows are the last tokens. `storage` keeps what is made.
// Throws Refused for pages, a table or lengths that contradict one another.
void gather_pages(std::string& line, std::vector<NamedTensor>& tensors,
                  std::deque<std::vector<std::byte>>& storage);

}  // namespace assay::judging

// The shell parts of the scripts, as they lie in slurm/templates; put into the program when it is built.
#pragma once

#include <string_view>

namespace lacuna::slurm {
extern const std::string_view kRunTemplate, kMergeTemplate, kRankTemplate;
}

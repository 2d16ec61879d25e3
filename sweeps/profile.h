// A measured hardware profile as a file: `lacuna bench --profile FILE` writes it, `lacuna plan` and `lacuna
// run` read it. docs/sweeps.md lists the fields.
#pragma once

#include <string>

#include "sweeps/cost_model.h"

namespace lacuna {

/// Whether a file must hold everything a prediction needs, or may be one that is still being measured.
enum class ProfileCheck { kComplete, kPartial };

/// Throws kUsage "FILE:LINE:COLUMN: ..." for a wrong field (with the nearest name), a wrong type, a rate that
/// is not positive, and, when `check` is kComplete, a missing field with the command that measures it.
HardwareProfile load_profile(const std::string& path, ProfileCheck check = ProfileCheck::kComplete);
/// The same from text; `file` starts the errors.
HardwareProfile parse_profile(std::string_view yaml, const std::string& file,
                              ProfileCheck check = ProfileCheck::kComplete);
/// YAML with a comment per field; what is not known is left out. parse_profile gives the same numbers back.
std::string profile_text(const HardwareProfile& profile);

}  // namespace lacuna

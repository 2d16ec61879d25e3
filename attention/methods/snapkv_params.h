// Parameters of the SnapKV family, declared once.
#pragma once

#include <string>
#include <vector>

#include "attention/methods/common.h"
#include "attention/methods/eviction.h"
#include "core/error.h"
#include "core/params.h"

namespace lacuna {

inline std::vector<ParamSpec> snapkv_params(const std::string& capacity_help) {
  return {{.name = "capacity",
           .default_value = std::int64_t{4096},
           .help = capacity_help,
           .unit = "tokens",
           .min = 1},
          {.name = "window",
           .default_value = std::int64_t{256},
           .help = "Last queries whose attention is the importance of a token",
           .unit = "tokens",
           .min = 1,
           .max = 4096},
          {.name = "kernel",
           .default_value = std::int64_t{21},
           .help = "Width of the average that smooths importance over neighbours; odd",
           .unit = "tokens",
           .min = 1,
           .max = 255},
          {.name = "first",
           .default_value = std::int64_t{kSinkColumns},
           .help = "First tokens of the prompt that always stay",
           .unit = "tokens",
           .min = 0},
          {.name = "last",
           .default_value = std::int64_t{kLocalTokens},
           .help = "Last tokens of the prompt that always stay",
           .unit = "tokens",
           .min = 0}};
}

inline AttendedRequest attended_request(const Params& params) {
  return {.capacity = params.get_int("capacity"),
          .window = params.get_int("window"),
          .kernel = static_cast<int>(params.get_int("kernel")),
          .first = params.get_int("first"),
          .last = params.get_int("last")};
}

/// The average is centred, so its width is odd.
inline void check_kernel(const Params& params, const std::string& where) {
  LACUNA_REQUIRE(params.get_int("kernel") % 2 == 1,
                 "{}: kernel: {} is even; the average is centred, so its width must be odd", where,
                 params.get_int("kernel"));
}

}  // namespace lacuna

// A stand-in for models: answers that depend on prompt, strategy and seed alone, in milliseconds, with faults
// on request. The model's "folder" says what it does: /fake/ok, /fake/slow (LACUNA_FAKE_MS per job),
// /fake/noload, /fake/throws, /fake/nan (variant errors at some prompts), /fake/big (needs a terabyte).
#pragma once

#include "runner/services.h"

namespace lacuna::testing {

ModelServices fake_model_services();

}  // namespace lacuna::testing

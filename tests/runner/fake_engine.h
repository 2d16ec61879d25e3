// A stand-in for models: answers that depend on prompt, strategy and seed alone, in milliseconds, with faults
// on request. The model's "folder" says what it does: /fake/ok, /fake/slow (LACUNA_FAKE_MS per job),
// /fake/noload, /fake/throws, /fake/nan (errors at some prompts), /fake/big (needs more memory than there
// is). LACUNA_FAKE_FIXED mends all faults but the last; LACUNA_FAKE_SALT changes every answer,
// LACUNA_FAKE_WEIGHTS the fingerprint of the weights.
#pragma once

#include "runner/services.h"

namespace lacuna::testing {

ModelServices fake_model_services();

}  // namespace lacuna::testing

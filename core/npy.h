// NumPy .npy files, format versions 1 to 3, C order, little endian: '<f4', '<f2', '<i4', '<i8', '|u1'.
// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <string>

#include "core/tensor.h"

namespace lacuna {

/// Reads a whole array (at most 4 dimensions) into host memory. Throws kUsage naming the file and what is wrong.
Tensor read_npy(const std::string& path);
/// Writes a host tensor. bf16 has no .npy type and is written as '<f4'.
void write_npy(const std::string& path, const TensorView& tensor);

}  // namespace lacuna

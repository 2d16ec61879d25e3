// safetensors: tensors in memory-mapped files, one file or several with an index.
// Format: 8 bytes little-endian length of a JSON header, the header, the data. Nothing is read before it is
// touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "model/ops.h"

namespace lacuna {

/// One tensor of a file.
struct SafetensorsEntry {
  std::string dtype;  ///< As written: "BF16", "F32", ...
  std::vector<std::int64_t> shape;
  std::size_t begin = 0, end = 0;  ///< Bytes from the start of the file; inside it.
};

/// Checks and reads the header of a whole file: length, JSON, known fields, offsets inside the data that
/// neither overlap nor leave holes, and byte counts that fit shape and dtype. Throws kUsage naming `where`
/// and the tensor. No bytes, whatever they are, make it read outside `file` or take memory out of proportion.
std::map<std::string, SafetensorsEntry> parse_safetensors(std::span<const std::byte> file,
                                                          const std::string& where);

/// All tensors of a model folder.
class Weights {
 public:
  /// model.safetensors, or the files that model.safetensors.index.json names. Throws kUsage naming file and
  /// tensor.
  static Weights open(const std::string& folder);
  /// True when the folder has weights that open() would look at.
  static bool present(const std::string& folder);

  bool has(const std::string& name) const { return tensors_.contains(name); }
  std::vector<std::string> names() const;
  /// A float tensor of exactly this shape, as a matrix [rows, cols]; a vector [n] is the matrix [1, n].
  /// Throws kUsage naming file and tensor when it is missing or has another shape or type.
  MatrixSlice matrix(const std::string& name, std::int64_t rows, std::int64_t cols) const;
  MatrixSlice vector(const std::string& name, std::int64_t n) const;
  std::string file_of(const std::string& name) const;
  std::int64_t bytes() const;

  /// 32 hex digits over headers, sizes and data. Folders of up to 64 MiB are hashed whole; of larger ones
  /// every file's header, first and last block and evenly spaced blocks of 64 KiB, 64 MiB in all, so that it
  /// stays cheap.
  std::string fingerprint() const;
  /// Tells the system that the mapped pages will not be needed again soon.
  void release_pages() const;

 private:
  struct Located {
    std::size_t file;
    SafetensorsEntry entry;
  };
  const Located& find(const std::string& name) const;
  MatrixSlice slice(const std::string& name, std::span<const std::int64_t> shape) const;
  void add_file(const std::string& path);

  std::string folder_;
  std::vector<MappedFile> files_;
  std::vector<std::size_t> header_bytes_;
  std::map<std::string, Located> tensors_;
};

}  // namespace lacuna

// Files: mapped for reading, written so that a crash leaves either the old or the new content.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace lacuna {

/// A whole file mapped read-only. Pages are read when touched. Move-only. An empty file gives an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  /// Throws kUsage naming the path and the operating system's reason.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::string path_;
};

/// The whole file as a string. Throws kUsage naming the path and the reason.
std::string read_file(const std::string& path);

/// A name beside `path` that no other process uses, on this host or another that shares the folder.
std::string temporary_name(const std::string& path);

/// Writes to a temporary file beside `path`, fsyncs, renames, fsyncs the folder: after a crash the path holds either
/// the old or the new content. Throws kLibrary (disk full, no permission) and removes the temporary file.
void write_file_atomically(const std::string& path, std::string_view content);

}  // namespace lacuna

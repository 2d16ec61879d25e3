// The few file operations that the journal depends on, behind an interface, so that tests can let the disk
// fill up or lose what was not synced.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

/// A file that only grows. Not thread-safe.
class AppendFile {
 public:
  virtual ~AppendFile() = default;
  /// All of `data`, or a throw (kLibrary, with the system's reason); after a throw an unknown part may have
  /// arrived.
  virtual void append(std::string_view data) = 0;
  /// Returns when everything appended would survive a power cut.
  virtual void sync() = 0;
  /// Cuts the file back; used to remove a part of a line.
  virtual void truncate(std::uint64_t size) = 0;
  virtual const std::string& path() const = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  /// A new file (kLibrary when it exists or cannot be made); the folder entry is synced too.
  virtual std::unique_ptr<AppendFile> create(const std::string& path) = 0;
  /// Names of the regular files in a folder, sorted; empty when there is no such folder.
  virtual std::vector<std::string> list(const std::string& folder) const = 0;
  /// Bytes [offset, end) of a file. Throws kUsage when it cannot be read.
  std::string read_from(const std::string& path, std::uint64_t offset) const {
    const std::uint64_t end = size(path);
    return end > offset ? read_range(path, offset, static_cast<std::size_t>(end - offset)) : std::string();
  }
  /// `bytes` from `offset`; fewer at the end of the file. Throws kUsage when it cannot be read.
  virtual std::string read_range(const std::string& path, std::uint64_t offset, std::size_t bytes) const = 0;
  virtual std::uint64_t size(const std::string& path) const = 0;
  /// With parents; no error when it is there.
  virtual void make_folder(const std::string& path) = 0;
};

/// The operating system's. Stateless; one instance for the process.
FileSystem& real_file_system();

}  // namespace lacuna

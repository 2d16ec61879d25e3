#include "runner/file_system.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/error.h"

namespace lacuna {

namespace {

std::string reason() { return std::strerror(errno); }

class RealAppendFile final : public AppendFile {
 public:
  RealAppendFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~RealAppendFile() override { ::close(fd_); }
  RealAppendFile(const RealAppendFile&) = delete;
  RealAppendFile& operator=(const RealAppendFile&) = delete;

  void append(std::string_view data) override {
    while (!data.empty()) {
      const ssize_t put = ::write(fd_, data.data(), data.size());
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) throw_library("{}: cannot write: {}", path_, reason());
      data.remove_prefix(static_cast<std::size_t>(put));
    }
  }
  void sync() override {
    if (::fdatasync(fd_) != 0) throw_library("{}: cannot sync: {}", path_, reason());
  }
  void truncate(std::uint64_t size) override {
    if (::ftruncate(fd_, static_cast<off_t>(size)) != 0)
      throw_library("{}: cannot truncate: {}", path_, reason());
  }
  const std::string& path() const override { return path_; }

 private:
  int fd_;
  std::string path_;
};

class RealFileSystem final : public FileSystem {
 public:
  std::unique_ptr<AppendFile> create(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) throw_library("{}: cannot create: {}", path, reason());
    auto file = std::make_unique<RealAppendFile>(fd, path);
    const auto folder = std::filesystem::path(path).parent_path().string();
    const int dir = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
      (void)::fsync(dir);  // some file systems refuse to sync a folder
      ::close(dir);
    }
    return file;
  }

  std::vector<std::string> list(const std::string& folder) const override {
    std::vector<std::string> names;
    std::error_code problem;
    for (const auto& entry : std::filesystem::directory_iterator(folder, problem)) {
      if (entry.is_regular_file(problem)) names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  }

  std::string read_range(const std::string& path, std::uint64_t offset, std::size_t bytes) const override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    LACUNA_REQUIRE(fd >= 0, "{}: cannot open: {}", path, reason());
    std::string content(bytes, '\0');
    std::size_t have = 0;
    while (have < bytes) {
      const ssize_t got = ::pread(fd, content.data() + have, bytes - have, static_cast<off_t>(offset + have));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        const std::string why = reason();
        ::close(fd);
        throw_usage("{}: cannot read: {}", path, why);
      }
      if (got == 0) break;
      have += static_cast<std::size_t>(got);
    }
    ::close(fd);
    content.resize(have);
    return content;
  }

  std::uint64_t size(const std::string& path) const override {
    struct stat info {};
    LACUNA_REQUIRE(::stat(path.c_str(), &info) == 0, "{}: cannot stat: {}", path, reason());
    return static_cast<std::uint64_t>(info.st_size);
  }

  void make_folder(const std::string& path) override {
    std::error_code problem;
    std::filesystem::create_directories(path, problem);
    if (problem) throw_library("{}: cannot create the folder: {}", path, problem.message());
  }
};

}  // namespace

FileSystem& real_file_system() {
  static RealFileSystem instance;
  return instance;
}

}  // namespace lacuna

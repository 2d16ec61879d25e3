#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace lacuna {

namespace {

/// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

std::string reason() { return std::strerror(errno); }

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  LACUNA_REQUIRE(fd.get() >= 0, "{}: cannot open: {}", path, reason());
  struct stat info {};
  LACUNA_REQUIRE(::fstat(fd.get(), &info) == 0, "{}: cannot stat: {}", path, reason());
  LACUNA_REQUIRE(S_ISREG(info.st_mode), "{}: is not a regular file", path);
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  LACUNA_REQUIRE(data != MAP_FAILED, "{}: cannot map {} bytes: {}", path, size_, reason());
  data_ = static_cast<std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

std::string read_file(const std::string& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  LACUNA_REQUIRE(fd.get() >= 0, "{}: cannot open: {}", path, reason());
  std::string content;
  struct stat info {};
  if (::fstat(fd.get(), &info) == 0 && info.st_size > 0) content.reserve(static_cast<std::size_t>(info.st_size));
  char chunk[1 << 16];
  while (true) {
    const ssize_t got = ::read(fd.get(), chunk, sizeof(chunk));
    if (got < 0 && errno == EINTR) continue;
    LACUNA_REQUIRE(got >= 0, "{}: cannot read: {}", path, reason());
    if (got == 0) return content;
    content.append(chunk, static_cast<std::size_t>(got));
  }
}

std::string temporary_name(const std::string& path) {
  char host[256] = "unknown";
  (void)::gethostname(host, sizeof(host) - 1);
  return fmt::format("{}.tmp.{}.{}", path, host, ::getpid());
}

void write_file_atomically(const std::string& path, std::string_view content) {
  const std::string temporary = temporary_name(path);
  const auto fail = [&](const char* what) {
    const std::string why = reason();
    ::unlink(temporary.c_str());
    throw_library("{}: cannot {}: {}", path, what, why);
  };
  {
    const Descriptor fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (fd.get() < 0) fail("write");
    while (!content.empty()) {
      const ssize_t put = ::write(fd.get(), content.data(), content.size());
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) fail("write");
      content.remove_prefix(static_cast<std::size_t>(put));
    }
    if (::fsync(fd.get()) != 0) fail("fsync");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("rename");
  const auto folder = std::filesystem::path(path).parent_path().string();
  const Descriptor dir(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (dir.get() >= 0) (void)::fsync(dir.get());  // some file systems refuse to sync a folder; the data is safe
}

}  // namespace lacuna

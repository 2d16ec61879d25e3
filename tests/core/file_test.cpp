#include "core/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "core/error.h"
#include "core/hash.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  FileTest() { fs::create_directories(folder_); }
  ~FileTest() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  fs::path folder_ = fs::temp_directory_path() / ("lacuna_file_test_" + std::to_string(::getpid()));
};

TEST_F(FileTest, AtomicWriteReplacesAndLeavesNothingBehind) {
  write_file_atomically(path("a"), "old");
  write_file_atomically(path("a"), "new");
  EXPECT_EQ(read_file(path("a")), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}), 1);
}

TEST_F(FileTest, AFailedWriteKeepsTheOldContentAndNamesTheFile) {
  write_file_atomically(path("a"), "old");
  fs::create_directory(path("folder"));
  try {
    write_file_atomically(path("folder"), "x");  // rename onto a folder fails
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(path("folder")), std::string::npos);
    EXPECT_EQ(e.kind(), ErrorKind::kLibrary);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}), 2);
}

TEST_F(FileTest, MapsFilesAndRefusesFoldersAndMissingOnes) {
  write_file_atomically(path("a"), "hello");
  const MappedFile file(path("a"));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()), "hello");
  write_file_atomically(path("empty"), "");
  EXPECT_TRUE(MappedFile(path("empty")).bytes().empty());
  EXPECT_THROW(MappedFile(path("missing")), Error);
  EXPECT_THROW(MappedFile(folder_.string()), Error);
}

TEST_F(FileTest, HashOfAFileIsTheHashOfItsBytes) {
  write_file_atomically(path("a"), "hello");
  Hasher hasher;
  hasher.add_bytes("hello", 5);
  EXPECT_EQ(hash_file(path("a")), hasher.digest_hex());
  EXPECT_EQ(hash_file(path("a")), "b5e9c1ad071b3e7fc779cfaa5e523818");  // xxhsum -H2
}

}  // namespace
}  // namespace lacuna

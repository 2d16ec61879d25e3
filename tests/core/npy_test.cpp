#include "core/npy.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "core/error.h"
#include "core/file.h"

namespace lacuna {
namespace {

class NpyTest : public testing::Test {
 protected:
  ~NpyTest() override { std::filesystem::remove(path_); }
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("lacuna_npy_" + std::to_string(::getpid()) + ".npy")).string();
};

TEST_F(NpyTest, RoundTrip) {
  const Tensor tensor({2, 3, 4}, DType::kF32);
  for (int i = 0; i < 24; ++i) tensor.as<float>()[i] = static_cast<float>(i) * 0.5f;
  write_npy(path_, tensor.view());
  const Tensor back = read_npy(path_);
  EXPECT_EQ(back.shape(), tensor.shape());
  EXPECT_EQ(back.dtype(), DType::kF32);
  EXPECT_TRUE(std::equal(tensor.as<float>(), tensor.as<float>() + 24, back.as<float>()));
  EXPECT_EQ(read_file(path_).size() % 64, 24 * 4 % 64);
}

TEST_F(NpyTest, EveryTruncationAndEveryByteFlipIsAnErrorOrAnArray) {
  const Tensor tensor({2, 2}, DType::kF32);
  std::fill_n(tensor.as<float>(), 4, 1.0f);
  write_npy(path_, tensor.view());
  const std::string good = read_file(path_);
  for (std::size_t length = 0; length < good.size(); ++length) {
    write_file_atomically(path_, good.substr(0, length));
    EXPECT_THROW(read_npy(path_), Error) << length;
  }
  for (std::size_t at = 0; at < 128; ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x15);
    write_file_atomically(path_, bad);
    try {
      read_npy(path_);
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace lacuna

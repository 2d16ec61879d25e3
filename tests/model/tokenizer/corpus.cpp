#include "corpus.h"

#include <sstream>
#include <string_view>

#include "core/file.h"
#include "model/tokenizer_utf8.h"

namespace lacuna::test {
namespace {

struct Range {
  std::uint32_t low, high;
};
constexpr Range kRanges[] = {{0x20, 0x7E},       {0xA0, 0x24F},    {0x300, 0x36F},    {0x370, 0x52F},
                             {0x590, 0x6FF},     {0x900, 0xDFF},   {0x1100, 0x11FF},  {0x1E00, 0x1FFF},
                             {0x2000, 0x206F},   {0x2070, 0x24FF}, {0x3000, 0x30FF},  {0x4E00, 0x9FFF},
                             {0xAC00, 0xD7A3},   {0xF900, 0xFB4F}, {0xFE00, 0xFEFF},  {0x1D400, 0x1D7FF},
                             {0x1F300, 0x1FAFF}, {0x0, 0xD7FF},    {0xE000, 0x10FFFF}};
constexpr std::string_view kBlanks[] = {"\n",       "\t",           "\r\n",     " ",
                                        "\xC2\xA0", "\xE3\x80\x80", "\xC2\x85", "\xE2\x80\xA8"};

}  // namespace

std::uint64_t SplitMix::next() {
  state_ += 0x9E3779B97F4A7C15u;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::vector<std::string> read_fragments() {
  std::vector<std::string> fragments;
  std::istringstream lines(read_file(std::string(kGolden) + "fragments.txt"));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('#')) continue;
    std::string bytes;
    for (std::size_t i = 0; i < line.size(); ++i) {
      if (line[i] == '%') {
        bytes.push_back(static_cast<char>(std::stoi(line.substr(i + 1, 2), nullptr, 16)));
        i += 2;
      } else {
        bytes.push_back(line[i]);
      }
    }
    fragments.push_back(bytes);
  }
  return fragments;
}

std::string corpus_line(const std::vector<std::string>& fragments, std::uint64_t seed, std::uint64_t index) {
  SplitMix r(seed * 1000003 + index);
  std::string out;
  const std::uint64_t parts = 1 + r.below(14);
  for (std::uint64_t part = 0; part < parts; ++part) {
    const std::uint64_t kind = r.below(20);
    if (kind < 12) {
      out += fragments[r.below(fragments.size())];
      if (r.below(3) != 0) out += ' ';
    } else if (kind < 14) {
      const Range range = kRanges[r.below(std::size(kRanges))];
      for (std::uint64_t n = 1 + r.below(4); n > 0; --n) {
        utf8::append(out, range.low + static_cast<std::uint32_t>(r.below(range.high - range.low + 1)));
      }
    } else if (kind == 14) {
      out.append(1 + r.below(20), ' ');
    } else if (kind == 15) {
      for (std::uint64_t n = 1 + r.below(6); n > 0; --n) out += kBlanks[r.below(std::size(kBlanks))];
    } else if (kind == 16) {
      for (std::uint64_t n = 1 + r.below(10); n > 0; --n) out += static_cast<char>('0' + r.below(10));
    } else if (kind == 17) {
      for (std::uint64_t n = 1 + r.below(3); n > 0; --n) out += static_cast<char>(r.below(256));
    } else if (kind == 18) {
      const char letter = static_cast<char>('a' + r.below(26));
      out.append(1 + r.below(40), letter);
    } else {
      const std::string& f = fragments[r.below(fragments.size())];
      out += f.substr(0, r.below(f.size() + 1));
    }
  }
  return out;
}

}  // namespace lacuna::test

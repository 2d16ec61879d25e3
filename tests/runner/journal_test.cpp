// The journal: what was acknowledged is read back to the bit, whatever else is in the folder.
#include "runner/journal.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/rng.h"

namespace lacuna {
namespace {

class JournalTest : public testing::Test {
 protected:
  JournalTest() {
    std::string name = (std::filesystem::temp_directory_path() / "lacuna_journal_XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~JournalTest() override { std::filesystem::remove_all(folder_); }

  struct Read {
    std::vector<SampleRecord> records;
    std::uint64_t issues = 0;
    std::size_t torn = 0;
  };
  Read read() const {
    Read result;
    JournalReader reader(real_file_system(), folder_);
    reader.poll([&](const RecordHead&, std::string_view line, const LineRef&) {
      SampleRecord record;
      EXPECT_EQ(read_record(line, record), LineProblem::kNone);
      result.records.push_back(record);
    });
    result.issues = reader.issue_count();
    result.torn = reader.torn_lines().size();
    return result;
  }
  std::string folder_;
};

SampleRecord record(std::uint64_t cell, int sample) {
  SampleRecord r;
  r.cell = cell;
  r.sample = sample;
  r.finished = 1732400000.125 + sample;
  r.score = 1.0 / 3;
  r.input_tokens = 4000;
  r.sparsity_computed = 0.1 + 0.2;
  r.kv_bytes_resident = (std::int64_t{1} << 53) + 1;
  r.seed = ~std::uint64_t{0} - 1;
  r.prediction = "line\nbreak \"quoted\" \x01 \xF0\x9F\x98\x80";
  r.gold = R"(["a","b"])";
  r.answer_or_error = "a";
  return r;
}

TEST_F(JournalTest, RecordsComeBackToTheBit) {
  JournalWriter writer(real_file_system(), folder_, "a.jsonl");
  const std::vector<SampleRecord> given = {record(0x0123456789abcdef, 0), record(~std::uint64_t{0}, 41)};
  writer.append(given);
  const auto got = read();
  ASSERT_EQ(got.records.size(), 2U);
  EXPECT_EQ(got.issues, 0U);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(to_journal_line(got.records[i]), to_journal_line(given[i]));
    EXPECT_EQ(got.records[i].prediction, given[i].prediction);
    EXPECT_EQ(got.records[i].score, given[i].score);
    EXPECT_EQ(got.records[i].kv_bytes_resident, given[i].kv_bytes_resident);
    EXPECT_EQ(got.records[i].seed, given[i].seed);
    EXPECT_TRUE(std::isnan(got.records[i].flops));
  }
}

TEST_F(JournalTest, TextThatIsNotUtf8IsRepaired) {
  auto r = record(1, 0);
  r.prediction = "ok \xFF\xFE end";
  JournalWriter writer(real_file_system(), folder_, "a.jsonl");
  writer.append(std::span(&r, 1));
  const auto got = read();
  ASSERT_EQ(got.records.size(), 1U);
  EXPECT_EQ(got.records[0].prediction, "ok \xEF\xBF\xBD\xEF\xBF\xBD end");
}

TEST_F(JournalTest, EveryTornTailIsDroppedAndEverythingBeforeItKept) {
  const std::string first = to_journal_line(record(1, 0)), second = to_journal_line(record(1, 1));
  for (std::size_t cut = 0; cut < second.size(); ++cut) {
    std::ofstream(folder_ + "/a.jsonl", std::ios::binary) << first << second.substr(0, cut);
    const auto got = read();
    ASSERT_EQ(got.records.size(), 1U) << cut;
    ASSERT_EQ(got.torn, cut == 0 ? 0U : 1U) << cut;
    ASSERT_EQ(got.issues, 0U) << cut;
  }
}

TEST_F(JournalTest, AnyChangedByteIsNoticed) {
  const std::string good = to_journal_line(record(1, 0));
  for (std::size_t i = 0; i + 1 < good.size(); ++i) {  // the newline apart
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x04);
    std::ofstream(folder_ + "/a.jsonl", std::ios::binary) << bad << good;
    const auto got = read();
    ASSERT_EQ(got.records.size(), 1U) << "byte " << i;
    ASSERT_GE(got.issues, 1U) << "byte " << i;
  }
}

TEST_F(JournalTest, GarbageBetweenGoodLinesIsReportedWithItsPlace) {
  std::ofstream out(folder_ + "/a.jsonl", std::ios::binary);
  Rng rng(1);
  std::string noise;
  for (int i = 0; i < 5000; ++i) noise += static_cast<char>(1 + rng.below(9));
  out << to_journal_line(record(1, 0)) << "{}\n\n" << noise << "\n" << to_journal_line(record(1, 1));
  out << R"({"cell":"zz","xxh3":"0000000000000000"})"
      << "\n";
  out.close();
  JournalReader reader(real_file_system(), folder_);
  int good = 0;
  reader.poll([&](const RecordHead&, std::string_view, const LineRef&) { ++good; });
  EXPECT_EQ(good, 2);
  ASSERT_EQ(reader.issues().size(), 4U);
  EXPECT_EQ(reader.issues()[0].line, 2U);
  EXPECT_EQ(reader.issues()[3].line, 6U);
  EXPECT_EQ(reader.issues()[0].file, "a.jsonl");
}

TEST_F(JournalTest, ALineWithARightChecksumAndAWrongHeadIsNoRecord) {
  std::string line = R"({"cell":"0123456789abcdef","sample":-7,"status":0,"attempt":0,"finished":1)";
  line += fmt::format(R"(,"xxh3":"{:016x}"}})", hash64(line));
  RecordHead head;
  EXPECT_EQ(read_head(line, head), LineProblem::kFormat);
}

TEST_F(JournalTest, PollSeesOnlyWhatIsNew) {
  JournalWriter a(real_file_system(), folder_, "a.jsonl"), b(real_file_system(), folder_, "b.jsonl");
  JournalReader reader(real_file_system(), folder_);
  std::vector<int> seen;
  const auto sink = [&](const RecordHead& head, std::string_view, const LineRef&) {
    seen.push_back(head.sample);
  };
  for (int i = 0; i < 3; ++i) {
    const auto r = record(1, i);
    (i == 1 ? b : a).append(std::span(&r, 1));
    reader.poll(sink);
    reader.poll(sink);
  }
  EXPECT_EQ(seen, (std::vector<int>{0, 1, 2}));
}

/// A disk with room for so many bytes.
class SmallDisk final : public FileSystem {
 public:
  explicit SmallDisk(std::uint64_t room) : room_(room) {}
  std::unique_ptr<AppendFile> create(const std::string& path) override {
    return std::make_unique<File>(*this, real_file_system().create(path));
  }
  std::vector<std::string> list(const std::string& f) const override { return real_file_system().list(f); }
  std::string read_range(const std::string& p, std::uint64_t o, std::size_t n) const override {
    return real_file_system().read_range(p, o, n);
  }
  std::uint64_t size(const std::string& p) const override { return real_file_system().size(p); }
  void make_folder(const std::string& p) override { real_file_system().make_folder(p); }

  std::uint64_t room_;
  bool can_truncate_ = true;

 private:
  class File final : public AppendFile {
   public:
    File(SmallDisk& disk, std::unique_ptr<AppendFile> file) : disk_(disk), file_(std::move(file)) {}
    void append(std::string_view data) override {
      const auto fits = std::min<std::uint64_t>(disk_.room_, data.size());
      file_->append(data.substr(0, fits));
      disk_.room_ -= fits;
      if (fits < data.size()) throw_library("{}: cannot write: No space left on device", path());
    }
    void sync() override { file_->sync(); }
    void truncate(std::uint64_t size) override {
      if (!disk_.can_truncate_) throw_library("truncate refused");
      file_->truncate(size);
    }
    const std::string& path() const override { return file_->path(); }

   private:
    SmallDisk& disk_;
    std::unique_ptr<AppendFile> file_;
  };
};

TEST_F(JournalTest, AFullDiskLosesNothingThatWasAcknowledged) {
  const std::size_t line = to_journal_line(record(1, 0)).size();
  for (const bool can_truncate : {true, false}) {
    for (std::uint64_t room = line; room < 3 * line; room += 97) {
      const std::string name = fmt::format("{}-{}", can_truncate, room);
      SmallDisk disk(room);
      disk.can_truncate_ = can_truncate;
      const std::string folder = folder_ + "/" + name;
      JournalWriter writer(disk, folder, "a.jsonl");
      int acknowledged = 0;
      try {
        for (int i = 0; i < 5; ++i, ++acknowledged) {
          const auto r = record(1, i);
          writer.append(std::span(&r, 1));
        }
        FAIL() << "the disk never filled up";
      } catch (const Error& e) {
        EXPECT_NE(std::string(e.what()).find("No space left"), std::string::npos);
      }
      disk.room_ = 1 << 20;  // somebody made room; the same writer goes on
      const auto later = record(1, 99);
      writer.append(std::span(&later, 1));
      JournalReader reader(real_file_system(), folder);
      std::vector<int> seen;
      reader.poll(
          [&](const RecordHead& head, std::string_view, const LineRef&) { seen.push_back(head.sample); });
      ASSERT_EQ(static_cast<int>(seen.size()), acknowledged + 1) << name;
      ASSERT_EQ(std::ranges::count(seen, 99), 1) << name;
      ASSERT_EQ(reader.issue_count(), 0U) << name;
    }
  }
}

TEST_F(JournalTest, AnUnwritableFolderIsAClearError) {
  std::ofstream(folder_ + "/file") << "x";
  JournalWriter writer(real_file_system(), folder_ + "/file/journal", "a.jsonl");
  const auto r = record(1, 0);
  try {
    writer.append(std::span(&r, 1));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(folder_ + "/file/journal"), std::string::npos) << e.what();
    EXPECT_EQ(e.kind(), ErrorKind::kLibrary);
  }
}

}  // namespace
}  // namespace lacuna

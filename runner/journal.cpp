#include "runner/journal.h"

#include "core/error.h"

namespace lacuna {

void JournalWriter::append(std::span<const SampleRecord> records) {
  if (records.empty()) return;
  std::string lines;
  for (const auto& record : records) lines += to_journal_line(record);
  if (!file_) {
    files_.make_folder(folder_);
    file_ = files_.create(folder_ + "/" + name_);
  }
  try {
    file_->append(lines);
    file_->sync();
  } catch (const Error&) {
    // Whole lines may stay (they are true); what must not stay is a part that the next line would be glued
    // to.
    try {
      file_->truncate(size_);
    } catch (const Error&) {
      file_.reset();  // never append to this file again
      name_ = "x" + name_;
    }
    throw;
  }
  size_ += lines.size();
}

void JournalReader::report(const std::string& file, std::uint64_t line, std::string what) {
  constexpr std::size_t kKept = 1000;
  ++issue_count_;
  if (issues_.size() < kKept) issues_.push_back({file, line, std::move(what)});
}

std::vector<JournalIssue> JournalReader::torn_lines() const {
  std::vector<JournalIssue> torn;
  for (const auto& [name, position] : positions_) {
    if (position.torn) torn.push_back({name, position.line + 1, "the last line is cut off"});
  }
  return torn;
}

void JournalReader::poll(const Sink& sink) {
  for (const auto& name : files_.list(folder_)) {
    if (!name.ends_with(".jsonl")) continue;
    auto [at, is_new] = positions_.try_emplace(name);
    if (is_new) {
      at->second.index = static_cast<std::int32_t>(paths_.size());
      paths_.push_back(folder_ + "/" + name);
    }
    poll_file(name, at->second, sink);
  }
}

void JournalReader::poll_file(const std::string& name, Position& position, const Sink& sink) {
  const std::string path = folder_ + "/" + name;
  const std::uint64_t size = files_.size(path);
  if (size == position.offset) {
    position.torn = false;
    return;
  }
  if (size < position.offset) {
    // A failed write was cut back; what we took before the cut were whole, checked lines.
    position.offset = size;
    return;
  }
  // In pieces, so that a journal of any size needs little memory; a piece grows until it holds a whole line.
  std::size_t piece = std::size_t{16} << 20;
  position.torn = false;
  while (position.offset < size) {
    const std::string content = files_.read_range(path, position.offset, piece);
    const std::size_t taken = take_lines(name, content, position, sink);
    position.offset += taken;
    if (taken > 0) continue;
    if (content.size() < piece) {
      position.torn = !content.empty();
      return;
    }
    piece *= 2;
  }
}

std::size_t JournalReader::take_lines(const std::string& name, std::string_view content, Position& position,
                                      const Sink& sink) {
  std::size_t begin = 0;
  while (true) {
    const std::size_t end = content.find('\n', begin);
    if (end == std::string_view::npos) break;
    ++position.line;
    const auto line = content.substr(begin, end - begin);
    const LineRef ref{position.index, position.offset + begin, static_cast<std::uint32_t>(line.size())};
    begin = end + 1;
    RecordHead head;
    switch (read_head(line, head)) {
      case LineProblem::kNone:
        sink(head, line, ref);
        break;
      case LineProblem::kChecksum:
        report(name, position.line, "checksum does not match; the line is ignored");
        break;
      case LineProblem::kFormat:
        report(name, position.line, "not a record of this version; the line is ignored");
        break;
    }
  }
  return begin;
}

}  // namespace lacuna

// Decoders of tokenizer.json: tokens back to text, one token at a time.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

/// One running step of decoding. It takes tokens and hands pieces on; what is not certain yet waits inside.
class DecoderStep {
 public:
  using Sink = std::function<void(std::string_view)>;
  virtual ~DecoderStep() = default;
  virtual void push(std::string_view token, const Sink& sink) = 0;
  /// No more tokens come: hands on what waited.
  virtual void finish(const Sink& sink) { (void)sink; }
};

/// A run of decoding from its first token to its last.
class DecoderRun {
 public:
  explicit DecoderRun(std::vector<std::unique_ptr<DecoderStep>> steps) : steps_(std::move(steps)) {}
  void push(std::string_view token, std::string& out) { feed(0, token, out); }
  void finish(std::string& out);

 private:
  void feed(std::size_t step, std::string_view token, std::string& out);
  std::vector<std::unique_ptr<DecoderStep>> steps_;
};

/// ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace and Sequence; without a decoder, tokens with
/// spaces between. Immutable and thread-safe. Streaming and decoding at once are the same code, so they
/// cannot differ.
class Decoder {
 public:
  /// `field` is the file's "decoder". Unsupported types throw kUsage by name.
  static Decoder parse(const nlohmann::json& field, const std::string& where);
  DecoderRun start() const;

 private:
  using Maker = std::function<std::unique_ptr<DecoderStep>()>;
  void add(const nlohmann::json& field, bool& fused, const std::string& where);
  std::vector<Maker> makers_;
};

}  // namespace lacuna

// The merchant's diary: chapters with a scene, an encounter, small talk, at most one purchase and one sale, a
// farewell.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/rng.h"
#include "tasks/prompt.h"

namespace lacuna {

struct Chapter {
  std::size_t place = 0, person = 0;  ///< Pairs are distinct over the story.
  std::size_t item = 0;               ///< All distinct. Bought, unless `buys` is false.
  bool buys = true;
  std::optional<std::size_t>
      sold;  ///< Index of the earlier chapter whose item is sold here; owned, and never sold twice.
  Block begin, purchase, sale, end;  ///< In this order; more small talk may be put before `purchase`.
};

/// What a story is made of; immutable.
class Narrative {
 public:
  /// `brief`: short chapters of one shape; `small`: a part of the names and items; `sale_chance`: of a sale
  /// in a chapter.
  Narrative(bool brief, bool small, double sale_chance);

  /// Chapters without their texts: who, where, what. Draws in the order of the chapters, so a longer story
  /// begins like a shorter one. Throws kUsage when names or items run out.
  class Plot {
   public:
    Plot(const Narrative& narrative, Rng rng);
    Chapter next();

   private:
    const Narrative& narrative_;
    Rng rng_;
    std::vector<bool> pairs_, items_;
    std::size_t used_ = 0;
    std::vector<std::size_t> owned_;  ///< Chapters whose item was bought and not sold yet
    friend class Narrative;
  };

  /// Writes the blocks of chapter `number` (from 1). `sold_item` is the item of chapter.sold.
  void write(Draft& draft, Chapter& chapter, std::uint64_t number, std::size_t sold_item, Rng& rng) const;

  std::string place(const Chapter& chapter) const;
  std::string person(const Chapter& chapter) const;
  /// "small copper lamp"
  std::string item(std::size_t item) const;
  /// Adds an item's words, each with its space.
  void add_item(Draft& draft, std::size_t item) const;

  /// Sentences of small talk for `room` tokens.
  std::vector<Block> small_talk(Draft& draft, std::int64_t room, Rng& rng) const;

 private:
  using Texts = std::vector<Template>;
  void add_part(Draft& draft, const Texts& texts, const Chapter& chapter, std::uint64_t number,
                std::size_t sold_item, Rng& rng) const;

  std::size_t places_, people_, adjectives_, materials_, kinds_;
  int talk_lines_;
  double sale_chance_;
  Texts heading_, scene_, meeting_, talk_, purchase_, sale_, farewell_;
};

/// A whole story that fits a budget, before the question is known.
struct Story {
  std::vector<Chapter> chapters;
  std::int64_t tokens = 0;  ///< Purchases and sales included

  /// The facts, for checks: one object per chapter (place, person, bought, sold).
  nlohmann::json facts(const Narrative& narrative) const;
  /// The chapters in order, with small talk at random places for `room` more tokens.
  std::vector<Block> context(const Narrative& narrative, Draft& draft, std::int64_t room, Rng& rng) const;
};

/// Adds chapters while they fit into `room` tokens.
Story tell_story(const Narrative& narrative, Draft& draft, std::int64_t room, const SampleRequest& request,
                 const char* task);

/// The parameters of a Narrative: detail, sale_chance.
std::vector<ParamSpec> narrative_params(std::span<const PresetCount> counts);
Narrative make_narrative(const Params& params);

}  // namespace lacuna

//! The text that goes with a picture at one visit.

use ferroclip_data::{Dataset, below};
use rand_chacha::ChaCha8Rng;

use crate::config::TrainData;
use crate::error::TrainError;

/// Words that are drawn from a comma list at most.
const MAX_KEYWORDS: u32 = 3;

/// How captions are drawn from the columns of a data set.
#[derive(Debug)]
pub(crate) struct Captions {
    columns: Vec<Column>,
    templates: Vec<String>,
    word_dropout: f64,
}

#[derive(Debug)]
struct Column {
    index: usize,
    is_list: bool,
    in_template: bool,
}

impl Captions {
    pub(crate) fn new(data: &TrainData, dataset: &Dataset) -> Result<Captions, TrainError> {
        let column = |name: &String| {
            Ok(Column {
                index: dataset.column_index(name)?,
                is_list: data.keywords.contains(name),
                in_template: data.label.as_ref().is_none_or(|label| label == name),
            })
        };
        let columns = data.captions.iter().map(column).collect::<Result<_, TrainError>>()?;
        let templates = data.templates.clone();
        Ok(Captions { columns, templates, word_dropout: data.word_dropout })
    }

    /// A caption of a row: of one of the columns that are not empty, with words left out, perhaps
    /// in a template. `None` where all columns are empty.
    pub(crate) fn draw(
        &self,
        dataset: &Dataset,
        row: usize,
        rng: &mut ChaCha8Rng,
    ) -> Option<String> {
        let cell = |column: &Column| dataset.cell(row, column.index).trim();
        let filled: Vec<&Column> = self.columns.iter().filter(|c| !cell(c).is_empty()).collect();
        let chosen = *filled.get(below(rng, filled.len() as u32) as usize)?;
        let text = match chosen.is_list {
            true => draw_keywords(cell(chosen), rng),
            false => drop_words(cell(chosen), self.word_dropout, rng),
        };
        if self.templates.is_empty() || !chosen.in_template {
            return Some(text);
        }
        let template = &self.templates[below(rng, self.templates.len() as u32) as usize];
        Some(template.replace("{}", &text))
    }
}

/// One to [`MAX_KEYWORDS`] entries of a comma list, in random order.
fn draw_keywords(list: &str, rng: &mut ChaCha8Rng) -> String {
    let mut words: Vec<&str> =
        list.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let n = 1 + below(rng, MAX_KEYWORDS.min(words.len() as u32));
    for place in 0..(n as usize).min(words.len()) {
        let left = (words.len() - place) as u32;
        words.swap(place, place + below(rng, left) as usize);
    }
    words.truncate(n as usize);
    words.join(", ")
}

/// Leaves out each word with probability `share`; where none would stay, one drawn word does. Draws
/// nothing for a share of zero or a single word.
fn drop_words(text: &str, share: f64, rng: &mut ChaCha8Rng) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    if share == 0.0 || words.len() < 2 {
        return text.to_owned();
    }
    let bound = (share * f64::from(u32::MAX)) as u32;
    let kept: Vec<&str> = words.iter().copied().filter(|_| below(rng, u32::MAX) >= bound).collect();
    match kept.is_empty() {
        true => words[below(rng, words.len() as u32) as usize].to_owned(),
        false => kept.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use ferroclip_data::keyed_rng;

    use super::*;

    #[test]
    fn words_are_dropped_at_the_rate_that_is_asked_for() {
        let words: Vec<String> = (0..100).map(|n| format!("w{n}")).collect();
        let text = words.join(" ");
        let mut kept = 0;
        for sample in 0..100 {
            let dropped = drop_words(&text, 0.3, &mut keyed_rng(0, "caption", 0, sample));
            let mut rest = words.iter();
            for word in dropped.split(' ') {
                assert!(rest.any(|w| w == word), "{word} is out of order");
                kept += 1;
            }
        }
        // 10,000 draws: the standard deviation of the count is 46.
        assert!((6_800..7_200).contains(&kept), "{kept}");
    }

    #[test]
    fn one_word_always_stays() {
        for sample in 0..200 {
            let rng = &mut keyed_rng(0, "caption", 0, sample);
            assert_eq!(drop_words("hydrant", 0.9, rng), "hydrant");
            assert!(!drop_words("red  fire hydrant", 0.9, rng).is_empty());
        }
    }

    #[test]
    fn without_dropout_the_text_is_untouched() {
        let rng = &mut keyed_rng(0, "caption", 0, 0);
        assert_eq!(drop_words("red  fire hydrant", 0.0, rng), "red  fire hydrant");
        let mut fresh = keyed_rng(0, "caption", 0, 0);
        assert_eq!(below(rng, 1_000_000), below(&mut fresh, 1_000_000), "nothing was drawn");
    }

    #[test]
    fn keywords_are_entries_of_the_list() {
        for sample in 0..100 {
            let drawn = draw_keywords("a, b,, c d ,e", &mut keyed_rng(0, "caption", 0, sample));
            let mut entries: Vec<&str> = drawn.split(", ").collect();
            assert!((1..=3).contains(&entries.len()), "{drawn}");
            entries.sort_unstable();
            entries.dedup();
            assert_eq!(entries.len(), drawn.split(", ").count(), "{drawn}: one comes twice");
            assert!(entries.iter().all(|e| ["a", "b", "c d", "e"].contains(e)), "{drawn}");
        }
    }
}

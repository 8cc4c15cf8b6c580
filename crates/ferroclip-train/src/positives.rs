//! Which pairs of a batch are positives of each other.

use std::collections::HashMap;

/// Numbers the texts of a batch so that equal ones have the same number. Without
/// `multi_positive` every text is its own.
pub fn positive_groups(texts: &[Vec<u32>], multi_positive: bool) -> Vec<usize> {
    if !multi_positive {
        return (0..texts.len()).collect();
    }
    let mut known: HashMap<&[u32], usize> = HashMap::new();
    let mut groups = Vec::with_capacity(texts.len());
    for text in texts {
        let next = known.len();
        groups.push(*known.entry(text).or_insert(next));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_a_number() {
        let texts = [vec![1, 2], vec![3], vec![1, 2], vec![]];
        assert_eq!(positive_groups(&texts, true), [0, 1, 0, 2]);
        assert_eq!(positive_groups(&texts, false), [0, 1, 2, 3]);
    }
}

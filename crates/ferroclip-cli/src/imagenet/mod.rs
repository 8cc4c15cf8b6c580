//! ImageNet's 1,000 classes and 80 templates as OpenAI edited them. `fixtures/classes/imagenet.py` wrote both files.

/// The word that both are asked for by, in the place of a file.
pub(crate) const NAME: &str = "imagenet";

const CLASSES: &str = include_str!("classes.tsv");
const TEMPLATES: &str = include_str!("templates.txt");

/// The names of the classes in their order. Two of them stand twice.
pub(crate) fn names() -> Vec<String> {
    columns().map(|(_, name)| name.to_owned()).collect()
}

/// The WordNet ids of the classes in the same order: what folders of pictures are called, `n01440764`.
pub(crate) fn ids() -> Vec<String> {
    columns().map(|(id, _)| id.to_owned()).collect()
}

/// The templates, with `{}` for the name of the class.
pub(crate) fn templates() -> impl Iterator<Item = String> {
    TEMPLATES.lines().map(str::to_owned)
}

/// Whether a label is a WordNet id, not a name.
pub(crate) fn is_id(label: &str) -> bool {
    let digits = label.strip_prefix('n').unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn columns() -> impl Iterator<Item = (&'static str, &'static str)> {
    CLASSES.lines().filter_map(|line| line.split_once('\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The traps of this list: edited names, two that stand twice, and the order of the WordNet ids.
    #[test]
    fn classes_are_openais() {
        let (names, ids) = (names(), ids());
        assert_eq!((names.len(), ids.len(), templates().count()), (1000, 1000, 80));
        assert!(ids.iter().all(|id| is_id(id)) && ids.is_sorted());
        assert_eq!((names[0].as_str(), ids[0].as_str()), ("tench", "n01440764"));
        assert_eq!([134, 517].map(|i| names[i].as_str()), ["crane bird", "construction crane"]);
        let places = |name: &str| (0..1000).filter(|&i| names[i] == name).collect::<Vec<_>>();
        assert_eq!((places("missile"), places("sunglasses")), (vec![657, 744], vec![836, 837]));
        assert!(templates().all(|template| template.matches("{}").count() == 1));
    }
}

//! Row filters: `column=value`, `column!=value`, and the virtual column `hash%N`.
//!
//! `hash%N` is the first 8 bytes, as a big-endian number, of the SHA-256 of the row's file name as
//! it stands in the table, modulo N. It splits data at random but for good: a row stays on its side
//! when others come and go, and the same rule is a line of Python.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::DataError;

/// A condition on a row. Several filters must all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    subject: Subject,
    value: String,
    negated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Column(String),
    Hash { modulus: u64 },
}

impl Filter {
    /// Whether a row passes; `cell` looks up a column by name, and an absent cell counts as empty.
    pub(crate) fn keeps<'a>(&self, key: &str, cell: impl Fn(&str) -> Option<&'a str>) -> bool {
        let equal = match &self.subject {
            Subject::Column(name) => cell(name).unwrap_or_default() == self.value,
            Subject::Hash { modulus } => (hash(key) % modulus).to_string() == self.value,
        };
        equal != self.negated
    }

    /// An error for a filter whose column is not among `columns`.
    pub(crate) fn check_columns(
        filters: &[Self],
        columns: &[String],
        path: &Path,
    ) -> Result<(), DataError> {
        for filter in filters {
            if let Subject::Column(name) = &filter.subject
                && !columns.contains(name)
            {
                return Err(DataError::UnknownColumn {
                    path: path.to_owned(),
                    column: name.clone(),
                    columns: columns.to_vec(),
                });
            }
        }
        Ok(())
    }
}

fn hash(key: &str) -> u64 {
    let digest = Sha256::digest(key.as_bytes());
    digest[..8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

impl FromStr for Filter {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let invalid = |reason: &str| DataError::InvalidFilter {
            filter: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (left, value) = text.split_once('=').ok_or_else(|| invalid("no `=`"))?;
        let (name, negated) = match left.strip_suffix('!') {
            Some(name) => (name, true),
            None => (left, false),
        };
        if name.is_empty() {
            return Err(invalid("no column before the `=`"));
        }
        let subject = match name.strip_prefix("hash%") {
            Some(modulus) => {
                let modulus = modulus.parse().ok().filter(|&n: &u64| n > 0);
                let modulus = modulus.ok_or_else(|| invalid("`hash%` needs a number above 0"))?;
                // Compared as text, so that only the plain decimal form can be meant.
                let plain = |n: &u64| *n < modulus && n.to_string() == value;
                if !value.parse().is_ok_and(|n| plain(&n)) {
                    return Err(invalid(&format!(
                        "`hash%{modulus}` takes the values 0 to {}",
                        modulus - 1
                    )));
                }
                Subject::Hash { modulus }
            }
            None => Subject::Column(name.to_owned()),
        };
        Ok(Self { subject, value: value.to_owned(), negated })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Column(name) => write!(f, "{name}")?,
            Subject::Hash { modulus } => write!(f, "hash%{modulus}")?,
        }
        write!(f, "{}={}", if self.negated { "!" } else { "" }, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps(filter: &str, key: &str, vendor: &str) -> bool {
        let filter: Filter = filter.parse().unwrap();
        filter.keeps(key, |column| (column == "vendor").then_some(vendor))
    }

    #[test]
    fn compares_columns() {
        assert!(keeps("vendor=google", "a.png", "google"));
        assert!(!keeps("vendor=google", "a.png", "Google"));
        assert!(keeps("vendor!=google", "a.png", "twitter"));
        assert!(keeps("vendor=", "a.png", ""));
        assert!(keeps("vendor=a=b", "a.png", "a=b"));
        assert!(keeps("absent!=x", "a.png", ""));
    }

    /// Values from Python: `int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 20`.
    #[test]
    fn hashes_as_python_does() {
        for (name, value) in [
            ("a.png", 12),
            ("animals/armadillo_architetto_fra_01.png", 17),
            ("gr\u{fc}n/\u{1f600}.png", 19),
        ] {
            assert_eq!(hash(name) % 20, value, "{name}");
            assert!(keeps(&format!("hash%20={value}"), name, ""));
            assert!(!keeps(&format!("hash%20!={value}"), name, ""));
        }
    }

    #[test]
    fn prints_what_it_parsed() {
        for text in ["a=b", "a!=b", "a=b=c", "hash%20!=0", "a="] {
            assert_eq!(text.parse::<Filter>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_nonsense() {
        for text in [
            "",
            "a",
            "=b",
            "!=b",
            "hash%=1",
            "hash%0=0",
            "hash%x=0",
            "hash%4=4",
            "hash%4=01",
            "hash%4=",
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(matches!(error, DataError::InvalidFilter { .. }), "{text}: {error}");
            assert!(error.hint().is_some());
        }
    }
}

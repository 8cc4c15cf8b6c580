//! The environment variables that Python's `huggingface_hub` reads, and what they mean there.

use std::env;
use std::path::PathBuf;

use crate::error::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// The value of a variable that is set and not empty.
fn value(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The same as a path, in which `~` is the home folder.
fn path(name: &str) -> Option<PathBuf> {
    let value = value(name)?;
    match (value.strip_prefix("~/"), env::home_dir()) {
        (Some(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(value.into()),
    }
}

/// `$HF_HOME`, else a folder in the user's cache.
fn home() -> Result<PathBuf> {
    let in_cache = |cache: PathBuf| cache.join("huggingface");
    let of_user = || env::home_dir().map(|home| home.join(".cache"));
    let found = path("HF_HOME").or_else(|| path("XDG_CACHE_HOME").or_else(of_user).map(in_cache));
    found.ok_or_else(|| {
        Error::input("there is no home folder to keep models in").hint("set `HF_HUB_CACHE`")
    })
}

/// Where models are kept.
pub(super) fn cache_folder() -> Result<PathBuf> {
    match path("HF_HUB_CACHE") {
        Some(path) => Ok(path),
        None => Ok(home()?.join("hub")),
    }
}

/// Where models come from, without a slash at the end.
pub(super) fn endpoint() -> String {
    let endpoint = value("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    endpoint.trim().trim_end_matches('/').to_owned()
}

/// The endpoint without a user's name and password, to be shown.
pub(super) fn shown_endpoint() -> String {
    without_user(&endpoint())
}

fn without_user(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// Whether nothing may be downloaded.
pub(super) fn is_offline() -> bool {
    let yes = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
    value("HF_HUB_OFFLINE").is_some_and(yes)
}

/// The user's token, if there is one.
#[cfg(feature = "hub")]
pub(super) fn token() -> Result<Option<String>> {
    let file = || path("HF_TOKEN_PATH").or_else(|| Some(home().ok()?.join("token")));
    let (token, place) = match (value("HF_TOKEN"), file()) {
        (Some(token), _) => (token, PathBuf::from("HF_TOKEN")),
        // No file, no token.
        (None, Some(file)) => (std::fs::read_to_string(&file).unwrap_or_default(), file),
        (None, None) => return Ok(None),
    };
    let token = token.trim();
    match token.chars().all(|c| c.is_ascii_graphic()) {
        true if token.is_empty() => Ok(None),
        true => Ok(Some(token.to_owned())),
        false => Err(Error::usage(format!("what `{}` holds is no token", place.display()))
            .hint("a token is one word, as the hub's settings show it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_user("http://user:p@ss@host:9/hub"), "http://host:9/hub");
        assert_eq!(without_user("https://host/a@b"), "https://host/a@b");
    }
}

//! Requests to the hub: what a repository holds, what a file is, and its bytes.
//!
//! Redirects are followed here and not by `ureq`: what the hub says of a file stands in its own answers, while the
//! bytes come from other hosts, which must not see the user's token.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::failure::{Failure, Tried, stop_if_asked};
use super::{env, files};
use crate::error::{Error, Kind, Result, without_number};
use crate::interrupt;

/// Redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// Longest listing of a repository, and most files in it.
const MAX_LISTING_BYTES: u64 = 16 << 20;
const MAX_FILES: usize = 100_000;
/// How long a server may take to accept a connection, and to say something.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

type Response = ureq::http::Response<Body>;

/// Asks about one repository.
pub(super) struct Client {
    agent: Agent,
    /// `owner/name`.
    repo: String,
    endpoint: String,
    token: Option<String>,
}

/// What a revision of a repository holds.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says of a file.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// The name of the content: for large files its SHA-256.
    pub(super) etag: Option<String>,
    pub(super) size: Option<u64>,
    commit: Option<String>,
    /// Whether the etag is that of the file behind a redirect.
    is_linked: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Verb {
    Head,
    Get,
}

impl Client {
    pub(super) fn new(repo: &str) -> Result<Client> {
        let endpoint = env::endpoint();
        // A password in it would be shown with every error.
        if origin(&endpoint).is_none_or(|(_, authority)| authority.contains('@')) {
            return Err(Error::usage("`HF_ENDPOINT` is no plain address")
                .hint("set it to something like `https://huggingface.co`, or unset it"));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("ferroclip/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .build();
        let agent = Agent::new_with_config(config);
        Ok(Client { agent, repo: repo.to_owned(), endpoint, token: env::token()? })
    }

    /// Where a file of a commit is.
    pub(super) fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, self.repo)
    }

    /// What a revision holds.
    pub(super) fn listing(&self, revision: &str) -> Tried<Listing> {
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, self.repo);
        let (response, _) = self.send(Verb::Get, &url, 0)?;
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_reader().take(MAX_LISTING_BYTES + 1);
        body.read_to_end(&mut bytes).map_err(|error| Failure::Broken(error.to_string()))?;
        let listing = match bytes.len() as u64 > MAX_LISTING_BYTES {
            true => Err(format!("more than {MAX_LISTING_BYTES} bytes")),
            false => parse_listing(&bytes),
        };
        listing.map_err(|reason| {
            let message = format!("`{url}` gives no good listing of a repository: {reason}");
            Failure::Final(answer_error(message).hint("check the name and `HF_ENDPOINT`"))
        })
    }

    /// What the hub says of a file, from its own answers alone.
    pub(super) fn metadata(&self, url: &str, commit: &str) -> Tried<Metadata> {
        let (_, metadata) = self.send(Verb::Head, url, 0)?;
        match &metadata.commit {
            Some(other) if other != commit => {
                let message = format!("`{url}` is of another commit: `{other}`");
                Err(Failure::Final(answer_error(message).hint("run the command again")))
            }
            _ => Ok(metadata),
        }
    }

    /// The bytes of a file from `begin` on, if the server can begin there.
    pub(super) fn get(&self, url: &str, begin: u64) -> Tried<Response> {
        Ok(self.send(Verb::Get, url, begin)?.0)
    }

    /// Sends a request and follows redirects; a [`Verb::Head`] ends where one leaves the hub.
    fn send(&self, verb: Verb, url: &str, begin: u64) -> Tried<(Response, Metadata)> {
        let mut metadata = Metadata::default();
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(verb, &url, begin)?;
            if self.is_hub(&url) {
                metadata.add(&response)?;
            }
            let Some(next) = redirect(&url, &response)? else { return Ok((response, metadata)) };
            if verb == Verb::Head && !self.is_hub(&next) {
                return Ok((response, metadata));
            }
            url = next;
        }
        let message = format!("`{}` is redirected more than {MAX_REDIRECTS} times", shown(&url));
        Err(Failure::Final(answer_error(message).hint("check `HF_ENDPOINT`")))
    }

    /// One request and its answer.
    fn exchange(&self, verb: Verb, url: &str, begin: u64) -> Tried<Response> {
        stop_if_asked()?;
        let mut request = match verb {
            Verb::Head => self.agent.head(url),
            Verb::Get => self.agent.get(url),
        };
        // Compressed, the bytes would not be those of the file.
        request = request.header("Accept-Encoding", "identity");
        if begin > 0 {
            request = request.header("Range", format!("bytes={begin}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = interrupt::while_blocked(|| request.call()).map_err(|error| {
            let reason = match &error {
                ureq::Error::Io(error) => without_number(error),
                error => error.to_string(),
            };
            Failure::Broken(format!("{}: {reason}", host(url)))
        })?;
        self.check(url, response)
    }

    /// An answer that says yes, or where to look.
    fn check(&self, url: &str, response: Response) -> Tried<Response> {
        let status = response.status();
        // 416: there is nothing behind the place to begin at.
        let is_past_end = status == StatusCode::RANGE_NOT_SATISFIABLE;
        if status.is_success() || status.is_redirection() || is_past_end {
            return Ok(response);
        }
        let (repo, code) = (&self.repo, status.as_u16());
        let (message, hint) = match code {
            408 | 429 | 500..=599 => {
                return Err(Failure::Broken(format!("{}: status {code}", host(url))));
            }
            401 | 403 if self.token.is_none() => (
                format!("the hub gives no access to `{repo}` (status {code})"),
                "check the name; a private repository, or one with terms to accept, needs your \
                 token in `HF_TOKEN`",
            ),
            401 | 403 => (
                format!("the hub gives no access to `{repo}` with your token (status {code})"),
                "check the name, accept the terms on the page of the repository, or set another \
                 token in `HF_TOKEN`",
            ),
            404 => (
                format!("the hub does not have `{}`", shown(url)),
                "check the name and the revision, and `HF_ENDPOINT` if it is set",
            ),
            _ => {
                (format!("`{}` is answered with status {code}", shown(url)), "check `HF_ENDPOINT`")
            }
        };
        Err(Failure::Final(answer_error(message).hint(hint)))
    }

    /// Whether an address is of the hub's own host.
    fn is_hub(&self, url: &str) -> bool {
        origin(url).is_some_and(|found| origin(&self.endpoint) == Some(found))
    }
}

impl Metadata {
    /// Takes in what another answer of the hub says.
    fn add(&mut self, response: &Response) -> Tried<()> {
        let headers = response.headers();
        let linked = text(headers, "x-linked-etag");
        if linked.is_some() || !self.is_linked {
            self.is_linked |= linked.is_some();
            if let Some(found) = linked.or(text(headers, "etag")) {
                let etag = plain_etag(found).ok_or_else(|| {
                    let message = format!("the hub names a file `{}`", found.escape_debug());
                    answer_error(message).hint("check `HF_ENDPOINT`")
                })?;
                self.etag = Some(etag.to_owned());
            }
        }
        let own = || text(headers, "content-length").filter(|_| response.status().is_success());
        let size = text(headers, "x-linked-size").or_else(own);
        self.size = size.and_then(|size| size.parse().ok()).or(self.size);
        self.commit = text(headers, "x-repo-commit").map(str::to_owned).or(self.commit.take());
        Ok(())
    }
}

/// An etag without quotes, if it can be the name of a file.
fn plain_etag(etag: &str) -> Option<&str> {
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let is_plain = etag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    (is_plain && (1..=128).contains(&etag.len()) && !etag.starts_with('.')).then_some(etag)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn parse_listing(bytes: &[u8]) -> std::result::Result<Listing, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let commit = value["sha"].as_str().filter(|sha| is_commit(sha));
    let commit = commit.ok_or("`sha` is no commit")?.to_owned();
    let siblings = value["siblings"].as_array().ok_or("it has no `siblings`")?;
    if siblings.len() > MAX_FILES {
        return Err(format!("it names {} files, limit {MAX_FILES}", siblings.len()));
    }
    let name = |sibling: &Value| sibling["rfilename"].as_str().map(str::to_owned);
    let files: Vec<String> = siblings.iter().filter_map(name).collect();
    match files.iter().find(|name| !files::is_below(name)) {
        Some(name) => Err(format!("it names `{}`, which is no path in it", name.escape_debug())),
        None => Ok(Listing { commit, files }),
    }
}

/// Where an answer sends us, if it does.
fn redirect(url: &str, response: &Response) -> Tried<Option<String>> {
    if !response.status().is_redirection() {
        return Ok(None);
    }
    let location = text(response.headers(), "location").unwrap_or_default();
    resolve(url, location).map(Some).ok_or_else(|| {
        let message = format!("`{}` is redirected to `{}`", shown(url), shown(location));
        Failure::Final(answer_error(message).hint("check `HF_ENDPOINT`"))
    })
}

/// The address that a redirect from `base` means. Nothing leads from `https` to `http`.
fn resolve(base: &str, location: &str) -> Option<String> {
    let (scheme, authority) = origin(base)?;
    let has_scheme = |scheme: &str| {
        location.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    };
    let url = if has_scheme("https://") || has_scheme("http://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        return None;
    };
    let (found, _) = origin(&url)?;
    (found == scheme || found == "https").then_some(url)
}

/// Scheme, and host with port, in small letters.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_lowercase();
    let authority = uri.authority()?.as_str().to_lowercase();
    matches!(scheme.as_str(), "http" | "https").then_some((scheme, authority))
}

fn host(url: &str) -> String {
    origin(url).map_or_else(String::new, |(_, authority)| without_password(&authority).to_owned())
}

/// An address without what may be a signature or a password in it.
fn shown(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", without_password(authority))
        }
        None => url.to_owned(),
    }
}

/// Host and port, without the user before them.
fn without_password(authority: &str) -> &str {
    authority.rsplit('@').next().unwrap_or_default()
}

/// The server said something that it should not.
fn answer_error(message: String) -> Error {
    Error::new(Kind::Failed("hub"), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_mean_an_address() {
        let from = |location: &str| resolve("https://a.b/c/d?e", location);
        assert_eq!(from("/x?y").as_deref(), Some("https://a.b/x?y"));
        assert_eq!(from("//o.p/x").as_deref(), Some("https://o.p/x"));
        assert_eq!(from("HTTPS://o.p/x").as_deref(), Some("HTTPS://o.p/x"));
        for bad in ["", "http://a.b/x", "file:///etc/passwd", "x", "https://"] {
            assert_eq!(from(bad), None, "{bad}");
        }
    }

    #[test]
    fn passwords_and_signatures_are_not_shown() {
        assert_eq!(shown("https://a:b@c.d:1/e?f=g"), "https://c.d:1/e");
        assert_eq!(shown("https://a:b@c.d"), "https://c.d");
        assert_eq!((shown("/e?f").as_str(), host("http://a:b@c.d:1/e").as_str()), ("/e", "c.d:1"));
    }

    #[test]
    fn etags_are_names_of_files() {
        assert_eq!(plain_etag("\"abc-1\""), Some("abc-1"));
        assert_eq!(plain_etag("W/\"abc\""), Some("abc"));
        for bad in ["", "\"\"", "../x", "a/b", "..", &"a".repeat(200)] {
            assert_eq!(plain_etag(bad), None, "{bad}");
        }
    }

    #[test]
    fn listings_are_checked() {
        let listing = |sha: &str, file: &str| {
            let value = serde_json::json!({"sha": sha, "siblings": [{"rfilename": file}]});
            parse_listing(value.to_string().as_bytes())
        };
        let sha = "0123456789".repeat(4);
        assert_eq!(listing(&sha, "a/b.json").expect("a listing").files, ["a/b.json"]);
        assert!(listing("main", "a").is_err() && listing("../../../x", "a").is_err());
        assert!(listing(&sha, "../a").is_err() && listing(&sha, "/a").is_err());
        assert!(parse_listing(b"<html>").is_err());
    }
}

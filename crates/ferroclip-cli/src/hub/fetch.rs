//! A repository: its listing, then the small files, then the weights, which make the model whole.

use std::path::PathBuf;

use super::cache::RepoCache;
use super::client::{Client, Listing};
use super::download::Download;
use super::failure::{Failure, N_TRIES, Tried, retry};
use super::files;
use super::name::Name;
use crate::common::Common;
use crate::error::{Error, Kind, Result};

/// How often the hub is asked for what it has; where it cannot be reached, the cache may do.
const N_LISTING_TRIES: u32 = 2;

/// A commit on its way into the cache.
struct Fetch<'a> {
    client: Client,
    cache: &'a RepoCache,
    common: &'a Common,
    name: &'a Name,
    commit: String,
    snapshot: PathBuf,
}

/// Brings the files of a model into the cache; the folder that they are in. Only a hub that cannot be reached at all
/// is [`Failure::Broken`].
pub(super) fn fetch(name: &Name, cache: &RepoCache, common: &Common) -> Tried<PathBuf> {
    let client = Client::new(&name.repo)?;
    let Listing { commit, files: listed } =
        retry(N_LISTING_TRIES, || client.listing(&name.revision))?;
    let has = |file: &str| listed.iter().any(|listed| listed == file);
    let chosen = files::choose(has).map_err(|missing| {
        Error::input(format!("there is no model in `{}`: it has no {missing}", name.repo))
            .hint("choose a repository with weights for open_clip or transformers")
    })?;
    let snapshot = cache.snapshot(&commit);
    let fetch = Fetch { client, cache, common, name, commit, snapshot };
    for file in &chosen.small {
        fetch.file(file)?;
    }
    for file in files::optional().filter(|file| !has(file)) {
        cache.set_absent(&fetch.commit, file)?;
    }
    // Python's programs may have taken another form of the weights.
    if files::missing(&fetch.snapshot).is_some() {
        fetch.weights(&chosen.weights)?;
    }
    cache.set_commit(&fetch.commit)?;
    Ok(fetch.snapshot)
}

impl Fetch<'_> {
    fn weights(&self, file: &str) -> Result<()> {
        self.file(file)?;
        if !files::is_index(file) {
            return Ok(());
        }
        let shards = files::shards(&self.snapshot.join(file)).map_err(|reason| {
            let message = format!("`{file}` of `{}`: {reason}", self.name.repo);
            Error::new(Kind::Failed("hub"), message).hint("choose another repository or revision")
        })?;
        shards.iter().try_for_each(|shard| self.file(shard))
    }

    /// A file that is in the commit already is not asked for: what a commit holds never changes.
    fn file(&self, file: &str) -> Result<()> {
        if self.snapshot.join(file).is_file() {
            return Ok(());
        }
        let doing = || format!("download `{file}` of `{}`", self.name.repo);
        self.download(file).map_err(|failure| failure.giving_up(&doing()))
    }

    fn download(&self, file: &str) -> Tried<()> {
        let url = self.client.file_url(&self.commit, file);
        let metadata = retry(N_TRIES, || self.client.metadata(&url, &self.commit))?;
        let etag = metadata.etag.ok_or_else(|| {
            let message = format!("the hub gives `{url}` no `ETag`");
            Failure::Final(Error::new(Kind::Failed("hub"), message).hint("check `HF_ENDPOINT`"))
        })?;
        let size = metadata.size.ok_or_else(|| {
            let message = format!("the hub gives `{url}` no size");
            Failure::Final(Error::new(Kind::Failed("hub"), message).hint("check `HF_ENDPOINT`"))
        })?;
        let download = Download {
            client: &self.client,
            cache: self.cache,
            common: self.common,
            file,
            url: &url,
            etag: &etag,
            size,
        };
        download.run()?;
        Ok(self.cache.link(&etag, &self.commit, file)?)
    }
}

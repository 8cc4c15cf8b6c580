//! `fetch`: models from the hub into the cache.

use std::path::{Path, PathBuf};

use clap::Args;
use ferroclip::Pretrained;
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::hub::{self, Name};
use crate::model::BUILTIN;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// `hf:owner/name`, `hf:owner/name@revision`, or a model and a tag of open_clip such as
    /// `ViT-B-32:laion2b_s34b_b79k`
    #[arg(value_name = "NAME", required_unless_present = "list")]
    names: Vec<String>,
    /// Print the models and tags that are known
    #[arg(long, conflicts_with = "names")]
    list: bool,
}

/// A model in the cache.
struct Fetched {
    name: Name,
    folder: PathBuf,
    files: Vec<PathBuf>,
}

pub(crate) fn run(args: &FetchArgs, common: &Common) -> Result<Done> {
    if args.list {
        return list(common);
    }
    // A wrong name is told before anything is downloaded.
    let names: Vec<Name> = args.names.iter().map(|text| name(text)).collect::<Result<_>>()?;
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let folder = hub::fetch(&name, common)?;
        let files = files(&folder)?;
        all.push(Fetched { name, folder, files });
    }
    match common.json {
        true => output::print_json(&json!({
            "models": all.iter().map(Fetched::to_json).collect::<Vec<_>>(),
        }))?,
        false => {
            let lines = all.iter().map(|fetched| format!("{}\n", fetched.folder.display()));
            output::print(&lines.collect::<String>())?;
        }
    }
    Ok(Done::All)
}

fn name(text: &str) -> Result<Name> {
    match Name::parse(text) {
        Some(name) => name,
        None if text == BUILTIN || Path::new(text).exists() => {
            Err(Error::usage(format!("`{text}` is here already"))
                .hint("give `hf:owner/name`, or a pair that `ferroclip fetch --list` prints"))
        }
        None => Err(hub::unknown(text)),
    }
}

impl Fetched {
    fn to_json(&self) -> Value {
        let Fetched { name, folder, files } = self;
        json!({
            "model": name.text, "hub": name.repo, "revision": name.revision,
            "path": folder, "files": files,
        })
    }
}

/// The files of a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::file("read", folder, &error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}

fn list(common: &Common) -> Result<Done> {
    let all = Pretrained::all();
    match common.json {
        true => {
            let pair = |known: Pretrained<'_>| json!({"model": known.model, "tag": known.tag, "hub": known.hub});
            output::print_json(&json!({"pairs": all.map(pair).collect::<Vec<_>>()}))?;
        }
        false => {
            let row = |known: Pretrained<'_>| {
                [known.model, known.tag, known.hub].map(str::to_owned).to_vec()
            };
            let rows: Vec<Vec<String>> = all.map(row).collect();
            output::print(&output::table(&["model", "tag", "hub"], &rows, &[]))?;
        }
    }
    Ok(Done::All)
}

//! Models by name: downloads from a hub on this computer, which now and then does what hubs should not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tempfile::tempdir;

use crate::common::{Run, draw, files_below, model, run};
use crate::hub::{Answer, COMMIT, Hub, Request, part, sha256};

const WEIGHTS: &str = "open_clip_model.safetensors";
const FETCH: [&str; 2] = ["fetch", "hf:owner/name"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/checkpoints").join(name)
}

fn succeeds(run: &Run) {
    assert_eq!(run.code, 0, "{}", run.stderr);
}

/// Whether a request is for the bytes of a large file.
fn is_download(request: &Request) -> bool {
    request.path.starts_with("/blob/")
}

fn is_listing(request: &Request) -> bool {
    request.path.starts_with("/api/")
}

/// Changes the first answer to such requests.
fn first(
    of: fn(&Request) -> bool,
    change: impl Fn(Answer) -> Answer + Send + Sync + 'static,
) -> impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static {
    let n = AtomicUsize::new(0);
    move |request, answer| match of(request) && n.fetch_add(1, Ordering::SeqCst) == 0 {
        true => change(answer),
        false => answer,
    }
}

#[test]
fn a_model_is_downloaded_once() {
    let hub = Hub::of(model());
    let document = hub.run(&["fetch", "hf:owner/name", "--json"]);
    succeeds(&document);
    let fetched = document.json()["models"][0].clone();
    let snapshot = hub.snapshot();
    assert_eq!(fetched["path"], json!(snapshot));
    assert_eq!(fetched["files"].as_array().unwrap().len(), 4);
    assert_eq!(fs::read(snapshot.join(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
    assert_eq!(fs::read_to_string(hub.folder().join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    {
        let blob = Path::new("../../blobs").join(sha256(hub.file(WEIGHTS)));
        assert_eq!(fs::read_link(snapshot.join(WEIGHTS)).unwrap(), blob);
    }
    assert!(!files_below(&hub.folder()).iter().any(|name| name.contains("incomplete")));
    assert!(hub.folder().join(".no_exist").join(COMMIT).join("vocab.json").is_file());

    let n = hub.requests().len();
    let folder = tempdir().unwrap();
    let picture = draw(&folder.path().join("a.png"), [200, 0, 0]);
    let classify = |model: &str| {
        let labels = ["--label", "red", "--label", "blue", "--json", "--model", model];
        let run = hub.run(&[&["classify", picture.as_str()][..], &labels].concat());
        succeeds(&run);
        run.json()["images"].clone()
    };
    assert_eq!(classify("hf:owner/name"), classify(&model().display().to_string()));
    assert_eq!(hub.requests().len(), n);

    let again = hub.run(&FETCH);
    assert_eq!(again.stdout, format!("{}\n", snapshot.display()));
    assert_eq!((hub.requests().len(), hub.downloads().len()), (n + 1, 1));
}

#[test]
fn a_command_fetches_what_it_needs() {
    let hub = Hub::of(&fixture("hf-sharded"));
    let against = fixture("hf-sharded").display().to_string();
    let name = format!("hf:owner/name@{COMMIT}");
    succeeds(&hub.run(&["verify", "--model", &name, "--against", &against, "--limit", "1e-4"]));
    // Four shards, and nothing that is no part of the model.
    assert_eq!(hub.downloads().len(), 4);
    assert!(!hub.snapshot().join("inputs_outputs.safetensors").exists());
    assert!(!hub.folder().join("refs").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn training_begins_with_a_model_of_the_hub() {
    let hub = Hub::of(model());
    let place = crate::training::Place::new(16);
    let config = place.config(&place.path("run"), 1, 5);
    succeeds(&hub.run(&["train", &config, "--set", "model.config=hf:owner/name", "--dry-run"]));
    assert_eq!(hub.downloads().len(), 1);
}

#[test]
fn pairs_of_model_and_tag_are_names() {
    let hub = Hub::of(model());
    succeeds(&hub.run(&["fetch", "ViT-B-32:laion2b_s34b_b79k"]));
    let listing = "/api/models/laion/CLIP-ViT-B-32-laion2B-s34B-b79K/revision/main";
    assert_eq!(hub.requests()[0].path, listing);

    let table = run(&["fetch", "--list"]);
    assert!(table.stdout.lines().count() > 100, "{}", table.stdout);
    let pairs = run(&["fetch", "--list", "--json"]).json()["pairs"].clone();
    assert_eq!(pairs.as_array().unwrap().len() + 1, table.stdout.lines().count());

    let unknown = run(&["inspect", "--model", "ViT-B-32:nonsense"]);
    unknown.fails(1, "no such model: `ViT-B-32:nonsense`");
    assert!(unknown.stderr.contains("`ViT-B-32:openai`"), "{}", unknown.stderr);
    run(&["fetch", "hf:owner"]).fails(2, "no good name of a repository");
    run(&["fetch", "draw-mini"]).fails(2, "is here already");
}

#[test]
fn a_broken_connection_is_taken_up() {
    let hub = Hub::with(model(), first(is_download, |answer| answer.cut(1000)));
    succeeds(&hub.run(&FETCH));
    let downloads = hub.downloads();
    assert_eq!(downloads.len(), 2);
    assert_eq!(downloads[1].headers["range"], "bytes=1000-");
    assert_eq!(fs::read(hub.blob(WEIGHTS)).unwrap(), hub.file(WEIGHTS));
}

#[test]
fn a_busy_hub_is_asked_again() {
    let hub = Hub::with(model(), first(is_listing, |_| Answer::new(503, Vec::new())));
    succeeds(&hub.run(&FETCH));
    let hub = Hub::with(model(), first(is_download, |_| Answer::new(429, Vec::new())));
    succeeds(&hub.run(&FETCH));
}

/// Puts bytes where an earlier download would have left them.
fn leave(hub: &Hub, bytes: &[u8]) {
    let path = hub.incomplete(WEIGHTS);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_earlier_download_is_taken_up() {
    let hub = Hub::of(model());
    leave(&hub, &hub.file(WEIGHTS)[..5000]);
    succeeds(&hub.run(&FETCH));
    assert_eq!(hub.downloads()[0].headers["range"], "bytes=5000-");

    // All of it was there.
    let hub = Hub::of(model());
    leave(&hub, hub.file(WEIGHTS));
    succeeds(&hub.run(&FETCH));
    assert_eq!(hub.downloads().len(), 0);

    // More than there should be is begun again.
    let hub = Hub::of(model());
    leave(&hub, &[hub.file(WEIGHTS), b"more"].concat());
    succeeds(&hub.run(&FETCH));
    assert!(!hub.downloads()[0].headers.contains_key("range"));

    // What was left is damaged: that is noticed, and not kept.
    let hub = Hub::of(model());
    leave(&hub, &[0; 5000]);
    hub.run(&FETCH).fails(1, "SHA-256");
    succeeds(&hub.run(&FETCH));
}

#[test]
fn servers_that_cannot_begin_in_the_middle() {
    let whole = fs::read(model().join(WEIGHTS)).unwrap();
    let hub = Hub::with(model(), move |request, answer| match is_download(request) {
        true => Answer::new(200, whole.clone()),
        false => answer,
    });
    leave(&hub, &hub.file(WEIGHTS)[..5000]);
    succeeds(&hub.run(&FETCH));
    assert_eq!(fs::read(hub.blob(WEIGHTS)).unwrap(), hub.file(WEIGHTS));

    let hub = Hub::with(model(), first(is_download, |_| Answer::new(416, Vec::new())));
    leave(&hub, &hub.file(WEIGHTS)[..5000]);
    succeeds(&hub.run(&FETCH));

    // Another part than the one asked for.
    let whole = fs::read(model().join(WEIGHTS)).unwrap();
    let hub = Hub::with(model(), move |request, answer| {
        let mut other = request.clone();
        match is_download(request) && request.headers.contains_key("range") {
            true => {
                other.headers.insert("range".to_owned(), "bytes=7-".to_owned());
                part(&other, &whole)
            }
            false => answer,
        }
    });
    leave(&hub, &hub.file(WEIGHTS)[..5000]);
    succeeds(&hub.run(&FETCH));
}

#[test]
fn damaged_files_are_not_kept() {
    let hub = Hub::with(
        model(),
        first(is_download, |mut answer| {
            answer.body[2000] ^= 1;
            answer
        }),
    );
    let damaged = hub.run(&FETCH);
    damaged.fails(1, &sha256(hub.file(WEIGHTS)));
    assert!(damaged.stderr.contains("expected"), "{}", damaged.stderr);
    assert!(!hub.blob(WEIGHTS).exists() && !hub.incomplete(WEIGHTS).exists());
    assert!(!hub.snapshot().join(WEIGHTS).exists());

    let hub = Hub::with(
        model(),
        first(is_download, |mut answer| {
            answer.body.push(0);
            answer.sent += 1;
            answer
        }),
    );
    hub.run(&FETCH).fails(1, "more than the");
    succeeds(&hub.run(&FETCH));

    // A small file has the name that git gives its content.
    let is_config = |request: &Request| request.path.ends_with("/small/open_clip_config.json");
    let hub = Hub::with(model(), move |request, mut answer| {
        if is_config(request) && !answer.body.is_empty() {
            answer.body[20] ^= 1;
        }
        answer
    });
    hub.run(&FETCH).fails(1, "SHA-1 in git");
    assert!(!hub.snapshot().join("open_clip_config.json").exists());
}

/// A pair says what its weights compute; a repository whose config says otherwise is not taken for it.
#[test]
fn the_activation_of_a_pair_is_that_of_the_table() {
    let hub = Hub::of(model());
    let inspect = |pair: &str| hub.run(&["inspect", "--model", pair]);
    succeeds(&inspect("ViT-B-32:laion2b_s34b_b79k"));
    inspect("ViT-B-32:openai").fails(1, "by their name the weights are `ViT-B-32:openai`");
}

#[test]
fn what_the_hub_refuses_is_told() {
    let status = |status: u16| {
        Hub::with(model(), move |request, answer| match is_listing(request) {
            true => Answer::new(status, Vec::new()),
            false => answer,
        })
    };
    status(404).run(&FETCH).fails(1, "the hub does not have");
    let closed = status(401);
    let refused = closed.run(&FETCH);
    refused.fails(1, "no access to `owner/name`");
    assert!(refused.stderr.contains("HF_TOKEN"), "{}", refused.stderr);
    let refused = closed.run_with("HF_TOKEN", "secret", &FETCH);
    refused.fails(1, "with your token");
    assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
    status(418).run(&FETCH).fails(1, "status 418");
    status(500).run(&FETCH).fails(1, "the hub cannot be reached");

    let empty = tempdir().unwrap();
    fs::write(empty.path().join("README.md"), "nothing").unwrap();
    Hub::of(empty.path()).run(&FETCH).fails(1, "there is no model in `owner/name`");
}

#[test]
fn hostile_answers_are_refused() {
    let listing = |body: Vec<u8>| {
        Hub::with(model(), move |request, answer| match is_listing(request) {
            true => Answer::new(200, body.clone()),
            false => answer,
        })
    };
    for name in ["../../x", "/etc/passwd", "a/../../b", "a\\..\\b"] {
        let body = json!({"sha": COMMIT, "siblings": [{"rfilename": name}]}).to_string();
        listing(body.into_bytes()).run(&FETCH).fails(1, "which is no path in it");
    }
    let body = json!({"sha": "../../x", "siblings": []}).to_string();
    listing(body.into_bytes()).run(&FETCH).fails(1, "`sha` is no commit");
    listing(vec![b' '; 17 << 20]).run(&FETCH).fails(1, "more than 16777216 bytes");

    let etag = |name: &'static str, value: &'static str| {
        Hub::with(model(), move |request, mut answer| {
            if request.path.contains("/resolve/") {
                answer.headers.retain(|(known, _)| *known != name);
                answer.headers.push((name, value.to_owned()));
            }
            answer
        })
    };
    etag("X-Linked-Etag", "\"../../evil\"").run(&FETCH).fails(1, "the hub names a file");
    etag("X-Repo-Commit", "another").run(&FETCH).fails(1, "is of another commit");
    etag("Location", "file:///etc/passwd").run(&FETCH).fails(1, "is redirected to `file:");
    etag("Location", "/owner/name/resolve/x").run(&FETCH).fails(1, "");

    let folder = tempdir().unwrap();
    let index = json!({"weight_map": {"a": "../../../../evil"}}).to_string();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    Hub::of(folder.path()).run(&FETCH).fails(1, "which is no plain name");
}

#[test]
fn redirects_end() {
    let hub = Hub::with(model(), |request, mut answer| {
        if request.path.starts_with("/small/") {
            answer.status = 307;
            answer.headers.push(("Location", request.path.clone()));
        }
        answer
    });
    hub.run(&FETCH).fails(1, "is redirected more than 5 times");
}

#[test]
fn the_token_stays_with_the_hub() {
    let hub = Hub::of(model());
    succeeds(&hub.run_with("HF_TOKEN", "secret", &FETCH));
    let has_token = |request: &Request| request.headers.contains_key("authorization");
    assert!(hub.requests().iter().all(|r| r.headers["authorization"] == "Bearer secret"));
    assert!(hub.downloads().len() == 1 && !hub.downloads().iter().any(has_token));

    let hub = Hub::of(model());
    let folder = tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "from a\nfile").unwrap();
    let token_path = file.display().to_string();
    hub.run_with("HF_TOKEN_PATH", &token_path, &FETCH).fails(2, "is no token");
    fs::write(&file, "from-a-file\n").unwrap();
    succeeds(&hub.run_with("HF_TOKEN_PATH", &token_path, &FETCH));
    assert!(hub.requests().iter().all(|r| r.headers["authorization"] == "Bearer from-a-file"));
}

#[test]
fn offline_the_cache_is_used() {
    let hub = Hub::of(model());
    let offline = |args: &[&str]| hub.run_with("HF_HUB_OFFLINE", "1", args);
    let absent = offline(&FETCH);
    absent.fails(1, "`hf:owner/name` is not in the cache, and `HF_HUB_OFFLINE` is set");
    assert!(absent.stderr.contains(WEIGHTS) && absent.stderr.contains("--model FOLDER"));
    assert_eq!(hub.requests().len(), 0);
    let document = offline(&["inspect", "--model", "hf:owner/name", "--json"]).json();
    assert_eq!(document["error"]["kind"], "offline");

    succeeds(&hub.run(&FETCH));
    let n = hub.requests().len();
    succeeds(&offline(&FETCH));
    // As Python leaves it, which does not know which files there are not.
    fs::remove_dir_all(hub.folder().join(".no_exist")).unwrap();
    succeeds(&offline(&["inspect", "--model", "hf:owner/name"]));
    fs::remove_file(hub.snapshot().join(WEIGHTS)).unwrap();
    let lacking = offline(&FETCH);
    lacking.fails(1, "lacks `open_clip_model.safetensors`");
    assert!(lacking.stderr.contains(&hub.snapshot().display().to_string()), "{}", lacking.stderr);
    assert_eq!(hub.requests().len(), n);
    // The content is still there.
    succeeds(&hub.run(&FETCH));
    assert_eq!(hub.downloads().len(), 1);
}

#[test]
fn without_a_connection_the_cache_is_used() {
    let hub = Hub::of(model());
    // A port that nobody listens at.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let fetch = || hub.run_with("HF_ENDPOINT", &nowhere, &FETCH);
    fetch().fails(1, "the hub cannot be reached");
    succeeds(&hub.run(&FETCH));
    let cached = fetch();
    succeeds(&cached);
    assert!(cached.stderr.contains("is taken from the cache"), "{}", cached.stderr);
    hub.run_with("HF_ENDPOINT", "huggingface", &FETCH)
        .fails(2, "`HF_ENDPOINT` is no plain address");
}

#[cfg(unix)]
#[test]
fn what_was_downloaded_before_a_signal_is_kept() {
    let hub = Hub::with(model(), first(is_download, Answer::slow));
    let child = hub.command(&FETCH).spawn().unwrap();
    let has_begun = || fs::metadata(hub.incomplete(WEIGHTS)).is_ok_and(|found| found.len() > 0);
    let begin = std::time::Instant::now();
    while !has_begun() {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is downloaded");
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap();
    let run = Run::new(&child.wait_with_output().unwrap());
    run.fails(130, "interrupted");
    let kept = fs::metadata(hub.incomplete(WEIGHTS)).unwrap().len();
    assert!(0 < kept && kept < hub.file(WEIGHTS).len() as u64);
    succeeds(&hub.run(&FETCH));
    assert_eq!(hub.downloads()[1].headers["range"], format!("bytes={kept}-"));
}

#[test]
fn two_processes_download_once() {
    let hub = Hub::with(model(), first(is_download, Answer::slow));
    let children = [(); 2].map(|()| hub.command(&FETCH).spawn().unwrap());
    for child in children {
        succeeds(&Run::new(&child.wait_with_output().unwrap()));
    }
    assert_eq!(hub.downloads().len(), 1);
}

#[test]
fn progress_counts_bytes() {
    let hub = Hub::of(model());
    let fetched = hub.run(&[&FETCH[..], &["--progress", "json"]].concat());
    let last = fetched.stderr.lines().last().unwrap();
    let line: serde_json::Value = serde_json::from_str(last).unwrap();
    let total = hub.file(WEIGHTS).len();
    let progress = &line["progress"];
    assert_eq!(
        (&progress["what"], &progress["done"], &progress["total"]),
        (&json!("bytes"), &json!(total), &json!(total))
    );
}

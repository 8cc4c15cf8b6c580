//! A server that speaks the hub's protocol, and a second one for the bytes of large files, as the hub has it.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common::{self, Run};

/// The commit that every branch is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The folder of `owner/name` in the cache.
const FOLDER: &str = "models--owner--name";
/// Variables of the user that must not reach the program.
const VARIABLES: [&str; 11] = [
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "XDG_CACHE_HOME",
    "ALL_PROXY",
    "all_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
];

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in small letters.
    pub(crate) headers: HashMap<String, String>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// How many bytes of the body are sent before the connection breaks.
    pub(crate) sent: usize,
    /// A rest after each thousand bytes.
    pub(crate) pause: Option<Duration>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: Vec<u8>) -> Answer {
        Answer { status, headers: Vec::new(), sent: body.len(), body, pause: None }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn cut(mut self, sent: usize) -> Answer {
        self.sent = sent;
        self
    }

    pub(crate) fn slow(mut self) -> Answer {
        self.pause = Some(Duration::from_millis(10));
        self
    }

    fn send(&self, method: &str, stream: &mut TcpStream) -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {} Status\r\nConnection: close\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        write!(stream, "Content-Length: {}\r\n\r\n", self.body.len())?;
        if method == "HEAD" {
            return Ok(());
        }
        for part in self.body[..self.sent].chunks(1000) {
            stream.write_all(part)?;
            self.pause.iter().for_each(|&pause| std::thread::sleep(pause));
        }
        Ok(())
    }
}

type Reply = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// It answers until the test ends.
    fn start(reply: Reply) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (reply, log) = (Arc::clone(&reply), Arc::clone(&log));
                // A client that goes away is no failure of the server.
                std::thread::spawn(move || serve(&mut stream.unwrap(), &reply, &log).ok());
            }
        });
        Server { address, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: &mut TcpStream, reply: &Reply, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let request = Request { method, path, headers };
    log.lock().unwrap().push(request.clone());
    reply(&request).send(&request.method, stream)
}

/// The bytes that a request asks for.
pub(crate) fn part(request: &Request, bytes: &[u8]) -> Answer {
    let begin = request
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match begin {
        None => Answer::new(200, bytes.to_vec()),
        Some(begin) if begin >= bytes.len() => Answer::new(416, Vec::new()),
        Some(begin) => {
            let range = format!("bytes {begin}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::new(206, bytes[begin..].to_vec()).header("Content-Range", range)
        }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a content in git.
fn git_sha1(bytes: &[u8]) -> String {
    let hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(file: &str) -> bool {
    !file.ends_with(".json") && !file.ends_with(".md")
}

/// A hub on which every repository has the files of one folder, and a cache to fetch them into.
pub(crate) struct Hub {
    hub: Server,
    cdn: Server,
    files: Arc<BTreeMap<String, Vec<u8>>>,
    /// The user's folder.
    home: TempDir,
}

impl Hub {
    pub(crate) fn of(folder: &Path) -> Hub {
        Hub::with(folder, |_, answer| answer)
    }

    /// A hub that does not always answer as it should.
    pub(crate) fn with(
        folder: &Path,
        change: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static,
    ) -> Hub {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            files.insert(name, std::fs::read(path).unwrap());
        }
        let (files, change) = (Arc::new(files), Arc::new(change));
        let (of_cdn, change_cdn) = (Arc::clone(&files), Arc::clone(&change));
        let cdn = Server::start(Arc::new(move |request: &Request| {
            let file = request.path.strip_prefix("/blob/").unwrap();
            let file = file.split('?').next().unwrap();
            change_cdn(request, part(request, &of_cdn[file]))
        }));
        let (of_hub, address) = (Arc::clone(&files), cdn.address.clone());
        let hub = Server::start(Arc::new(move |request: &Request| {
            change(request, answer(request, &of_hub, &address))
        }));
        Hub { hub, cdn, files, home: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn file(&self, name: &str) -> &[u8] {
        &self.files[name]
    }

    /// The folder of `owner/name` in the cache.
    pub(crate) fn folder(&self) -> PathBuf {
        self.home.path().join("hub").join(FOLDER)
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT)
    }

    /// The blob of a large file.
    pub(crate) fn blob(&self, file: &str) -> PathBuf {
        self.folder().join("blobs").join(sha256(self.file(file)))
    }

    pub(crate) fn incomplete(&self, file: &str) -> PathBuf {
        self.blob(file).with_extension("incomplete")
    }

    /// The program, for this hub and its cache.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = common::command(args);
        VARIABLES.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", self.home.path());
        command.env("HF_ENDPOINT", &self.hub.address);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::new(&self.command(args).output().unwrap())
    }

    /// Runs it with another variable.
    pub(crate) fn run_with(&self, name: &str, value: &str, args: &[&str]) -> Run {
        Run::new(&self.command(args).env(name, value).output().unwrap())
    }

    /// What was asked of the hub so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.hub.requests()
    }

    /// What was asked of the server of large files so far.
    pub(crate) fn downloads(&self) -> Vec<Request> {
        self.cdn.requests()
    }
}

fn answer(request: &Request, files: &BTreeMap<String, Vec<u8>>, cdn: &str) -> Answer {
    let not_found = || Answer::new(404, b"Entry not found".to_vec());
    if request.path.starts_with("/api/models/") && request.path.contains("/revision/") {
        let names: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
        return Answer::new(
            200,
            json!({"sha": COMMIT, "siblings": names}).to_string().into_bytes(),
        );
    }
    if let Some(file) = request.path.strip_prefix("/small/") {
        let etag = format!("W/\"{}\"", git_sha1(&files[file]));
        return part(request, &files[file]).header("ETag", etag);
    }
    let Some((_, file)) = request.path.split_once(&format!("/resolve/{COMMIT}/")) else {
        return not_found();
    };
    let Some(bytes) = files.get(file) else { return not_found() };
    match is_large(file) {
        true => Answer::new(302, Vec::new())
            .header("X-Repo-Commit", COMMIT)
            .header("X-Linked-Etag", format!("\"{}\"", sha256(bytes)))
            .header("X-Linked-Size", bytes.len().to_string())
            .header("ETag", "\"of-the-redirect\"")
            .header("Location", format!("{cdn}/blob/{file}?signature=x")),
        false => Answer::new(307, Vec::new())
            .header("X-Repo-Commit", COMMIT)
            .header("Location", format!("/small/{file}")),
    }
}

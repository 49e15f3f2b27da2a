//! The tree's own rules, as far as a program can check them: which crate may use which, what a file must and must not contain,
//! where things lie. Each rule is a function from what it reads to what is wrong; `the_tree_is_tidy` applies all of them, and the
//! tests at the bottom show of each that it can fail. Not what clippy.toml and deny.toml hold: see `make check`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which of our crates a crate may use outside its tests. `testbed` is not listed: it may use any, and nothing may use it.
const ARROWS: [(&str, &[&str]); 8] = [
    ("mesh-state", &[]),
    ("telemetry", &[]),
    ("reactor", &[]),
    ("hbone", &["mesh-state"]),
    ("inpod", &["mesh-state"]),
    ("control", &["mesh-state", "hbone", "inpod"]),
    ("dataplane", &["mesh-state", "hbone", "inpod", "reactor", "telemetry"]),
    ("coretunnel", &["mesh-state", "hbone", "inpod", "reactor", "telemetry", "control", "dataplane"]),
];

/// Crates of ours outside `crates/`: they measure, so the daemon's crates never use them.
const MEASURING: [&str; 3] = ["benches", "perf-tests", "bench-config"];

/// What mesh-state may use: `no_std` crates without a clock, a socket or a thread in them.
const MESH_STATE_USES: [&str; 5] = ["hashbrown", "ipnet", "rpds", "smallvec", "thiserror"];

/// The runtime's own crates: one door.
const BEHIND_THE_REACTOR: [&str; 2] = ["glommio", "io-uring"];

/// Crates that connections pass through, and the parts of tokio that would make them need its runtime.
const DATA_PATH: [&str; 4] = ["mesh-state", "hbone", "reactor", "dataplane"];
const TOKIO_RUNTIME: [&str; 6] = ["full", "net", "rt", "rt-multi-thread", "signal", "time"];

/// Crates that get time from their caller and own what they touch.
const CLOCKLESS: [&str; 3] = ["mesh-state", "hbone", "dataplane"];

const LINES_MAX: usize = 650;

/// Where an unbounded channel is in use, with what bounds it.
const UNBOUNDED: [(&str, &str); 1] =
    [("crates/reactor/src/gate.rs", "a runnable is in it at most once, so it is bounded by the core's tasks")];

const TOP_LEVEL: [&str; 19] = [
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".git",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "benches",
    "config",
    "crates",
    "docs",
    "perf-tests",
    "rust-toolchain.toml",
    "target",
    // What a daemon started here with its defaults leaves; not in git.
    "var",
];

/// Names that say nothing of what is in the file.
const EMPTY_NAMES: [&str; 12] = [
    "common", "handler", "handlers", "helper", "helpers", "manager", "misc", "shared", "types", "util", "utils",
    "stuff",
];

#[test]
fn the_tree_is_tidy() {
    let root = root();
    let packages = Package::all(&root);
    let sources = Source::all(&root);
    assert!(packages.len() >= 11 && sources.len() > 100, "the whole tree is read: {} files", sources.len());

    let mut wrong = arrows(&packages);
    wrong.extend(foreign_dependencies(&packages));
    for source in &sources {
        wrong.extend(opening(source));
        wrong.extend(length(source));
        wrong.extend(file_name(source));
        wrong.extend(words(source));
        wrong.extend(data_path(source));
    }
    wrong.extend(exceptions_still_needed(&sources));
    wrong.extend(top_level(&names_in(&root)));
    for page in pages(&root) {
        let text = fs::read_to_string(root.join(&page)).expect("listed a moment ago");
        wrong.extend(links(&page, &text, &|path| root.join(path).exists()));
    }
    assert!(wrong.is_empty(), "{} things are not tidy:\n{}", wrong.len(), wrong.join("\n"));
}

// ---------------------------------------------------------------- crates

/// One of our packages, with its dependencies outside tests.
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    features: Vec<String>,
    for_tests: bool,
}

impl Package {
    fn all(root: &Path) -> Vec<Self> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
            .current_dir(root)
            .output()
            .expect("cargo runs this test, so it can be run");
        assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(&serde_json::from_slice(&output.stdout).expect("cargo prints JSON"))
    }

    fn parse(metadata: &Value) -> Vec<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let dependency = |value: &Value| Dependency {
            name: text(&value["name"]),
            features: list(&value["features"]).iter().map(text).collect(),
            for_tests: value["kind"] == "dev",
        };
        list(&metadata["packages"])
            .iter()
            .map(|package| Self {
                name: text(&package["name"]),
                dependencies: list(&package["dependencies"]).iter().map(dependency).collect(),
            })
            .collect()
    }
}

fn arrows(packages: &[Package]) -> Vec<String> {
    let ours: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let row = ARROWS.iter().find(|(name, _)| *name == package.name);
        let free = package.name == "testbed" || MEASURING.contains(&package.name.as_str());
        if row.is_none() && !free {
            wrong.push(format!("{}: a new crate: give it a row in ARROWS and in docs/ARCHITECTURE.md", package.name));
        }
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            if !ours.contains(&to) || dependency.for_tests {
                continue;
            }
            let allowed = match row {
                Some((_, allowed)) => allowed.contains(&to),
                None => to != "testbed" || ["benches", "bench-config"].contains(&package.name.as_str()),
            };
            if !allowed {
                wrong.push(format!("{} uses {to}: no such arrow in docs/ARCHITECTURE.md", package.name));
            }
        }
    }
    wrong
}

fn foreign_dependencies(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            if BEHIND_THE_REACTOR.contains(&to) && name != "reactor" {
                wrong.push(format!("{name} uses {to}: only the reactor may, so that the runtime has one door"));
            }
            if dependency.for_tests {
                continue;
            }
            if name == "mesh-state" && !MESH_STATE_USES.contains(&to) {
                wrong.push(format!("mesh-state uses {to}: it is pure; its list is MESH_STATE_USES"));
            }
            if to == "tokio" && DATA_PATH.contains(&name) {
                for feature in dependency.features.iter().filter(|feature| TOKIO_RUNTIME.contains(&feature.as_str())) {
                    wrong.push(format!("{name} asks for tokio's `{feature}`: no tokio runtime in the data path"));
                }
            }
        }
    }
    wrong
}

// ---------------------------------------------------------------- sources

struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
    /// `text` with comments and literals blanked, line by line the same.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    fn all(root: &Path) -> Vec<Self> {
        let mut sources = Vec::new();
        for top in ["crates", "benches", "perf-tests"] {
            for path in files_under(&root.join(top)) {
                if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&path).expect("sources are UTF-8");
                    sources.push(Self::new(&relative(root, &path), &text));
                }
            }
        }
        sources
    }

    /// The name of the crate directory.
    fn crate_name(&self) -> &str {
        let path = self.path.strip_prefix("crates/").unwrap_or(&self.path);
        path.split('/').next().unwrap_or_default()
    }

    fn is_product(&self) -> bool {
        self.path.split('/').any(|part| part == "src")
    }

    /// The code before the file's tests.
    fn code_without_tests(&self) -> &str {
        self.code.find("#[cfg(test)]\nmod ").map_or(&self.code, |tests| &self.code[..tests])
    }

    fn at(&self, offset: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, 1 + self.code[..offset].matches('\n').count())
    }
}

fn opening(source: &Source) -> Option<String> {
    // A fuzz target is one line around a check of the crate's; libfuzzer wants its attribute first.
    let first = source.text.lines().next().unwrap_or_default();
    let fine =
        first.starts_with("//! ") || (source.path.contains("/fuzz_targets/") && first.starts_with("#![no_main]"));
    (!fine).then(|| format!("{}: does not open with `//!`: say what the file is, and is not", source.path))
}

fn length(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > LINES_MAX).then(|| format!("{}: {lines} lines: one concept per file", source.path))
}

fn file_name(source: &Source) -> Option<String> {
    let path = Path::new(&source.path);
    let empty = path.iter().filter_map(|part| part.to_str()).find(|part| {
        let stem = part.strip_suffix(".rs").unwrap_or(part);
        EMPTY_NAMES.contains(&stem)
    })?;
    Some(format!("{}: `{empty}` does not say what is in it: name the concept", source.path))
}

fn words(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    // Written so that this file does not find itself.
    for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")] {
        for offset in places(&source.text, word) {
            wrong.push(source.at(offset, &format!("{word}: do it, or open an issue")));
        }
    }
    for (word, cure) in [
        (concat!("to", "do!"), "write it"),
        (concat!("unimpl", "emented!"), "write it"),
        (concat!("#[ig", "nore"), "a test that can't run fails"),
    ] {
        for offset in source.code.match_indices(word).map(|(offset, _)| offset) {
            wrong.push(source.at(offset, &format!("{word}: {cure}")));
        }
    }
    if !["reactor", "inpod"].contains(&source.crate_name()) {
        for offset in places(&source.code, "unsafe") {
            wrong.push(source.at(offset, "unsafe: only reactor and inpod may"));
        }
    }
    let excused = UNBOUNDED.iter().any(|(path, _)| *path == source.path);
    if source.is_product() && source.crate_name() != "testbed" && !excused {
        for word in ["unbounded", "unbounded_channel"] {
            for offset in places(&source.code, word) {
                wrong.push(source.at(offset, "an unbounded channel: give it a limit, or a reason in UNBOUNDED"));
            }
        }
    }
    wrong
}

fn data_path(source: &Source) -> Vec<String> {
    if !source.is_product() {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let code = source.code_without_tests();
    if CLOCKLESS.contains(&source.crate_name()) {
        for word in ["Mutex", "RwLock", "Condvar", "LazyLock", "OnceLock"] {
            for offset in places(code, word) {
                wrong.push(source.at(offset, &format!("{word}: a core owns what it touches")));
            }
        }
        // `'static` is a lifetime and no state.
        for offset in places(code, "static").into_iter().filter(|offset| !code[..*offset].ends_with('\'')) {
            wrong.push(source.at(offset, "static: state lives on a core or on the control thread"));
        }
        for call in ["Instant::now", "SystemTime::now", "thread::sleep", "fastrand::", "env::var"] {
            for offset in places(code, call) {
                wrong.push(source.at(offset, &format!("{call}: time, randomness and environment are arguments")));
            }
        }
    }
    if DATA_PATH.contains(&source.crate_name()) {
        for part in ["tokio::time", "tokio::net", "tokio::spawn", "tokio::task", "tokio::runtime", "tokio::sync"] {
            for offset in places(code, part) {
                wrong.push(source.at(offset, &format!("{part}: no tokio runtime in the data path")));
            }
        }
    }
    if source.path == "crates/mesh-state/src/lib.rs" && !code.contains("#![no_std]") {
        wrong.push(format!("{}: not `#![no_std]`, so the compiler no longer checks that it is pure", source.path));
    }
    wrong
}

fn exceptions_still_needed(sources: &[Source]) -> Vec<String> {
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let mut wrong = Vec::new();
    for (path, _) in UNBOUNDED {
        if find(path).is_none_or(|source| places(&source.code, "unbounded").is_empty()) {
            wrong.push(format!("{path} is in UNBOUNDED and has no unbounded channel"));
        }
    }
    wrong
}

/// Where `word` stands alone in `text`.
fn places(text: &str, word: &str) -> Vec<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let last_matters = word.ends_with(part_of_word);
    text.match_indices(word)
        .filter(|(offset, _)| {
            let before = text[..*offset].chars().next_back();
            let after = text[offset + word.len()..].chars().next();
            !(before.is_some_and(part_of_word) || last_matters && after.is_some_and(part_of_word))
        })
        .map(|(offset, _)| offset)
        .collect()
}

/// `text` with everything in comments and literals replaced by spaces, newlines kept: byte offsets stay what they were.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let starts_word = at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let length = if rest.starts_with(b"//") {
            find(rest, b"\n").unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            find(rest, b"*/").map_or(rest.len(), |end| end + 2)
        } else if rest[0] == b'"' {
            quoted(rest, b'"')
        } else if rest[0] == b'r' && starts_word && matches!(rest.get(1), Some(b'"' | b'#')) {
            raw(rest)
        } else if rest[0] == b'\'' {
            character(rest)
        } else {
            0
        };
        let hidden = &mut code[at..at + length];
        hidden.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at += length.max(1);
    }
    String::from_utf8(code).expect("whole characters were replaced")
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0; // r#identifier
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    find(&rest[2 + hashes..], &end).map_or(rest.len(), |found| 2 + hashes + found + end.len())
}

/// The length of a character literal; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    match rest.get(1) {
        Some(b'\\') => quoted(rest, b'\''),
        Some(first) => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
        }
        None => 0,
    }
}

// ---------------------------------------------------------------- tree

fn top_level(names: &[String]) -> Vec<String> {
    let unknown = names.iter().filter(|name| !TOP_LEVEL.contains(&name.as_str()));
    unknown
        .map(|name| format!("{name}: not a name of the top level: find its place below, or list it in TOP_LEVEL"))
        .collect()
}

/// Relative links of a page that lead nowhere.
fn links(page: &str, text: &str, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let directory = Path::new(page).parent().unwrap_or(Path::new(""));
    let mut wrong = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for piece in line.split("](").skip(1) {
            let target = piece.split([')', ' ']).next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !exists(&directory.join(path)) {
                wrong.push(format!("{page}: the link to {target} leads nowhere"));
            }
        }
    }
    wrong
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("testbed lies in crates/")
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).expect("listed from the root").to_str().expect("names are UTF-8").to_owned()
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory is there");
    entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
}

fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for name in names_in(directory) {
        let path = directory.join(&name);
        if path.is_dir() {
            if !["target", "artifacts", "coverage", "corpus"].contains(&name.as_str()) {
                files.extend(files_under(&path));
            }
        } else {
            files.push(path);
        }
    }
    files
}

fn pages(root: &Path) -> Vec<String> {
    let docs = files_under(&root.join("docs")).into_iter().map(|path| relative(root, &path));
    let mut pages: Vec<String> = docs.filter(|path| path.ends_with(".md")).collect();
    pages.push("README.md".to_owned());
    pages.retain(|page| root.join(page).exists());
    pages
}

// ---------------------------------------------------------------- each rule can fail

fn metadata(name: &str, to: &str, kind: Value, features: &[&str]) -> Vec<Package> {
    let dependency = serde_json::json!({ "name": to, "kind": kind, "features": features });
    let others = ["mesh-state", "reactor", "dataplane", "control", "testbed"];
    let mut packages = vec![serde_json::json!({ "name": name, "dependencies": [dependency] })];
    packages.extend(others.iter().map(|other| serde_json::json!({ "name": other, "dependencies": [] })));
    Package::parse(&serde_json::json!({ "packages": packages }))
}

#[test]
fn arrows_against_the_table_are_found() {
    for (from, to, kind, found) in [
        ("control", "dataplane", Value::Null, 1),
        ("dataplane", "control", Value::Null, 1),
        ("mesh-state", "reactor", Value::Null, 1),
        ("coretunnel", "testbed", Value::Null, 1),
        ("perf-tests", "testbed", Value::Null, 1),
        ("control", "dataplane", "build".into(), 1),
        ("control", "dataplane", "dev".into(), 0),
        ("testbed", "control", Value::Null, 0),
        ("dataplane", "reactor", Value::Null, 0),
        ("newcomer", "bytes", Value::Null, 1),
    ] {
        let wrong = arrows(&metadata(from, to, kind, &[]));
        assert_eq!(wrong.len(), found, "{from} -> {to}: {wrong:?}");
    }
}

#[test]
fn dependencies_in_the_wrong_crate_are_found() {
    for (from, to, kind, features, found) in [
        ("dataplane", "glommio", Value::Null, &[][..], 1),
        ("dataplane", "glommio", "dev".into(), &[], 1),
        ("testbed", "io-uring", Value::Null, &[], 1),
        ("reactor", "glommio", Value::Null, &[], 0),
        ("mesh-state", "tokio", Value::Null, &[], 1),
        ("mesh-state", "proptest", "dev".into(), &[], 0),
        ("hbone", "tokio", Value::Null, &["io-util"], 0),
        ("hbone", "tokio", Value::Null, &["io-util", "time"], 1),
        ("hbone", "tokio", "dev".into(), &["rt"], 0),
        ("dataplane", "tokio", Value::Null, &["rt", "net"], 2),
        ("control", "tokio", Value::Null, &["rt"], 0),
    ] {
        let wrong = foreign_dependencies(&metadata(from, to, kind, features));
        assert_eq!(wrong.len(), found, "{from} -> {to} {features:?}: {wrong:?}");
    }
}

#[test]
fn words_that_do_not_belong_in_a_source_are_found() {
    let forgotten = concat!("//! x\n// TO", "DO: later\n");
    let ignored = concat!("//! x\n#[test]\n#[ig", "nore = \"slow\"]\nfn f() {}\n");
    let unfinished = concat!("//! x\nfn f() { to", "do!() }\n");
    for (path, text, found) in [
        ("crates/hbone/src/a.rs", forgotten, 1),
        ("crates/hbone/src/a.rs", ignored, 1),
        ("crates/hbone/tests/a.rs", unfinished, 1),
        ("crates/hbone/src/a.rs", "//! x\nfn f() { unsafe { g() } }\n", 1),
        ("crates/reactor/src/a.rs", "//! x\nfn f() { unsafe { g() } }\n", 0),
        ("crates/hbone/src/a.rs", "//! unsafe is not used\nlet x = \"unsafe\"; // unsafe\n#![deny(unsafe_code)]", 0),
        ("crates/control/src/a.rs", "//! x\nlet (a, b) = async_channel::unbounded();\n", 1),
        ("crates/control/tests/a.rs", "//! x\nlet (a, b) = async_channel::unbounded();\n", 0),
        ("crates/testbed/src/a.rs", "//! x\nlet (a, b) = async_channel::unbounded();\n", 0),
        ("crates/reactor/src/gate.rs", "//! x\nlet (a, b) = channel::unbounded();\n", 0),
    ] {
        let wrong = words(&Source::new(path, text));
        assert_eq!(wrong.len(), found, "{path}: {text}: {wrong:?}");
    }
}

#[test]
fn locks_clocks_and_runtimes_in_the_data_path_are_found() {
    for (path, text, found) in [
        ("crates/dataplane/src/a.rs", "use std::sync::{Arc, Mutex};", 1),
        ("crates/dataplane/src/a.rs", "static SEEN: AtomicU64 = AtomicU64::new(0);", 1),
        ("crates/dataplane/src/a.rs", "fn name() -> &'static str { f::<'static>() }", 0),
        ("crates/dataplane/src/a.rs", "let now = Instant::now();", 1),
        ("crates/dataplane/src/a.rs", "let now = std::time::SystemTime::now();", 1),
        ("crates/dataplane/src/a.rs", "let draw = fastrand::u64(..);", 1),
        ("crates/dataplane/src/a.rs", "#[cfg(test)]\nmod tests { fn f() { Instant::now() } }", 0),
        ("crates/dataplane/src/a.rs", "// not Instant::now()\nlet c = 'M'; let s = r#\"Mutex\"#;", 0),
        ("crates/dataplane/tests/a.rs", "let now = Instant::now();", 0),
        ("crates/control/src/a.rs", "let now = Instant::now();", 0),
        ("crates/reactor/src/a.rs", "let now = Instant::now();", 0),
        ("crates/reactor/src/a.rs", "tokio::time::sleep(x).await", 1),
        ("crates/hbone/src/a.rs", "use tokio::io::AsyncRead; tokio::spawn(f);", 1),
        ("crates/mesh-state/src/lib.rs", "//! x", 1),
        ("crates/mesh-state/src/lib.rs", "//! x\n#![no_std]", 0),
    ] {
        let wrong = data_path(&Source::new(path, text));
        assert_eq!(wrong.len(), found, "{path}: {text}: {wrong:?}");
    }
}

#[test]
fn files_that_open_badly_are_too_long_or_named_badly_are_found() {
    assert!(opening(&Source::new("crates/a/src/a.rs", "use std::fs;\n")).is_some());
    assert!(opening(&Source::new("crates/a/src/a.rs", "#![no_main]\n")).is_some());
    assert!(opening(&Source::new("crates/a/fuzz/fuzz_targets/a.rs", "#![no_main]\n")).is_none());
    assert!(opening(&Source::new("crates/a/src/a.rs", "//! What it is.\n")).is_none());

    assert!(length(&Source::new("crates/a/src/a.rs", &"\n".repeat(LINES_MAX + 1))).is_some());
    assert!(length(&Source::new("crates/a/src/a.rs", &"\n".repeat(LINES_MAX))).is_none());

    for (path, found) in [
        ("crates/a/src/util.rs", true),
        ("crates/a/tests/common/mod.rs", true),
        ("crates/a/src/pool/manager.rs", true),
        ("crates/a/src/pool.rs", false),
    ] {
        assert_eq!(file_name(&Source::new(path, "")).is_some(), found, "{path}");
    }
    assert_eq!(exceptions_still_needed(&[]).len(), UNBOUNDED.len());
}

#[test]
fn a_stray_name_at_the_top_and_a_dead_link_are_found() {
    assert_eq!(top_level(&["crates".to_owned(), "notes.txt".to_owned()]).len(), 1);

    let exists = |path: &Path| path == Path::new("docs/there.md") || path == Path::new("docs/../Makefile");
    for (text, found) in [
        ("[a](there.md)", 0),
        ("[a](there.md#part) and [b](../Makefile)", 0),
        ("[a](gone.md)", 1),
        ("[a](gone.md#part) [b](lost.md)", 2),
        ("[a](https://example.com/x) [b](#here)", 0),
        ("```\n[a](gone.md)\n```", 0),
    ] {
        let wrong = links("docs/page.md", text, &exists);
        assert_eq!(wrong.len(), found, "{text}: {wrong:?}");
    }
}

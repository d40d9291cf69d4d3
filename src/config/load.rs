//! From files to one [`Config`].

use super::decode::{Decoder, Whole, expect_table};
use super::filters::Filters;
use super::interpolate::Replacements;
use super::suggest::suggest;
use super::syntax::{self, Spoiled};
use super::{ChainConfig, Config, Entry, Named, RouteConfig, Unread};
use crate::diagnostic::{Diagnostics, Span};
use crate::filter::Registry;
use crate::value::{Located, read_file, set_decoding_file};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Where the configuration is when nobody says where.
pub const DEFAULT_PATH: &str = "/etc/gatewright/gatewright.toml";
/// The largest file that is read, in bytes.
pub const FILE_MAX: u64 = 64 << 20;
/// The most files that are read.
const FILES_MAX: usize = 10_000;
/// How deep includes may nest.
const DEPTH_MAX: usize = 8;

/// What came of reading a configuration.
pub struct Loaded {
    /// What could be read. It is only to be run if the diagnostics have no error; with errors it serves to find more of
    /// them, those that show when the parts meet.
    pub config: Config,
    pub diagnostics: Diagnostics,
    /// Every file that was read or should have been.
    pub files: Vec<PathBuf>,
    /// The directories in which a change, a new file included, can change the configuration: what watch mode watches.
    pub directories: BTreeSet<PathBuf>,
    /// Sixteen hexadecimal digits of the text with its variables filled in: the same for the same configuration. Says
    /// whether two configurations are the same; it is no protection against forgery.
    pub hash: String,
}

/// Reads files, or all `*.toml` of directories in the order of their names, with what they include; checks everything, and
/// reports everything that is wrong. `env` looks up variables of the environment.
pub fn load(paths: &[PathBuf], registry: &Registry, env: &dyn Fn(&str) -> Option<String>) -> Loaded {
    let mut loader = Loader::new(registry, env);
    for path in paths {
        loader.path(path);
    }
    loader.finish()
}

/// As [`load`], for a text that is not in a file, such as an embedded default. `name` stands for its path.
pub fn load_text(name: &str, text: &str, registry: &Registry, env: &dyn Fn(&str) -> Option<String>) -> Loaded {
    let mut loader = Loader::new(registry, env);
    loader.text(PathBuf::from(name), text.to_owned(), &[]);
    loader.finish()
}

/// Whether a section holds named entries (`[routes.NAME]`).
pub(super) fn is_named(section: &str) -> bool {
    matches!(section, "listeners" | "tiers" | "consumers" | "jwt" | "upstreams" | "chains" | "routes")
}

/// The sections of a file, in the order of the reference.
pub(super) const SECTIONS: [&str; 15] = [
    "server",
    "admin",
    "log",
    "limits",
    "redis",
    "cache",
    "listeners",
    "tiers",
    "consumer_source",
    "identity",
    "consumers",
    "jwt",
    "upstreams",
    "chains",
    "routes",
];

/// What is written for one name, with its own list of filters if it has one.
pub(super) trait Section: DeserializeOwned {
    const FILTERS: bool = false;
    fn set_filters(&mut self, _filters: Filters) {}
}

impl Section for super::ListenerConfig {}
impl Section for crate::consumer::ConsumerConfig {}
impl Section for crate::consumer::TierConfig {}
impl Section for crate::upstream::UpstreamConfig {}
impl Section for crate::jwt::IssuerConfig {}
impl Section for ChainConfig {
    const FILTERS: bool = true;
    fn set_filters(&mut self, filters: Filters) {
        self.filters = filters;
    }
}
impl Section for RouteConfig {
    const FILTERS: bool = true;
    fn set_filters(&mut self, filters: Filters) {
        self.filters = filters;
    }
}

/// What is known beside the tree while it grows.
#[derive(Default)]
pub(super) struct Progress {
    /// Where `[server]` and its like are written.
    singletons: BTreeMap<&'static str, Span>,
    /// Names that are written but could not be decoded: they exist, so they are not dangling, and may not be used again.
    pub failed: HashMap<(&'static str, String), Option<Span>>,
    /// Entries that lost something to an error. They count for references, and what they have whole is checked.
    pub dirty: HashMap<(&'static str, String), Whole>,
    /// Something could not be read at all, so nothing can be said to be missing.
    pub incomplete: bool,
}

impl Progress {
    pub fn failed_names(&self, section: &'static str) -> impl Iterator<Item = &str> + Clone {
        self.failed.keys().filter(move |(failed, _)| *failed == section).map(|(_, name)| name.as_str())
    }

    fn unread(&self) -> Unread {
        let any = |section| self.incomplete || self.failed_names(section).next().is_some();
        let lost =
            |(key, whole): (&(&str, String), &Whole)| (key.0 == "routes" && whole.has_lost("match")).then(|| key.1.clone());
        Unread { jwt: any("jwt"), routes: any("routes"), matches: self.dirty.iter().filter_map(lost).collect() }
    }
}

struct Loader<'a> {
    registry: &'a Registry,
    env: &'a dyn Fn(&str) -> Option<String>,
    d: Diagnostics,
    config: Config,
    progress: Progress,
    files: Vec<PathBuf>,
    directories: BTreeSet<PathBuf>,
    seen: HashSet<PathBuf>,
    hash: Hash,
}

impl<'a> Loader<'a> {
    fn new(registry: &'a Registry, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Loader {
            registry,
            env,
            d: Diagnostics::default(),
            config: Config::default(),
            progress: Progress::default(),
            files: Vec::new(),
            directories: BTreeSet::new(),
            seen: HashSet::new(),
            hash: Hash::default(),
        }
    }

    fn finish(mut self) -> Loaded {
        self.config.unread = self.progress.unread();
        super::validate::check(&self.config, &self.progress, &mut self.d);
        Loaded {
            config: self.config,
            diagnostics: self.d,
            files: self.files,
            directories: self.directories,
            hash: self.hash.hex(),
        }
    }

    /// One argument of `-c`.
    fn path(&mut self, path: &Path) {
        if !path.is_dir() {
            return self.file(path, None, &[]);
        }
        self.watch(path);
        let list = fs::read_dir(path).and_then(|list| list.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>());
        match list {
            Ok(mut list) => {
                // Editors keep half-written copies in hidden files.
                let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                list.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && !hidden(path));
                list.sort();
                if list.is_empty() {
                    self.unreadable(None, format!("the directory {} has no *.toml file", path.display()));
                }
                list.iter().for_each(|path| self.file(path, None, &[]));
            }
            Err(error) => self.unreadable(None, format!("cannot read the directory {}: {error}", path.display())),
        }
    }

    fn watch(&mut self, directory: &Path) {
        let here = directory.as_os_str().is_empty();
        self.directories.insert(if here { PathBuf::from(".") } else { directory.to_owned() });
    }

    fn unreadable(&mut self, by: Option<Span>, message: String) {
        self.progress.incomplete = true;
        self.d.error(by, message);
    }

    /// Reads one file. `by` is where it is included, `within` the files that lead to it.
    fn file(&mut self, path: &Path, by: Option<Span>, within: &[PathBuf]) {
        let identity = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if within.contains(&identity) {
            self.progress.incomplete = true;
            self.d.error(by, format!("{} includes itself", path.display())).label("this leads back to it");
            return;
        }
        if !self.seen.insert(identity.clone()) {
            return;
        }
        self.files.push(path.to_owned());
        self.watch(path.parent().unwrap_or(Path::new("")));
        if self.files.len() > FILES_MAX {
            return self.unreadable(by, format!("more than {FILES_MAX} configuration files"));
        }
        match read(path) {
            Ok(text) => {
                let mut within = within.to_vec();
                within.push(identity);
                self.text(path.to_owned(), text, &within);
            }
            Err(why) => self.unreadable(by, format!("cannot read {}: {why}", path.display())),
        }
    }

    /// Reads the text of one file and what it includes.
    fn text(&mut self, path: PathBuf, text: String, within: &[PathBuf]) {
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        // The text is lent to the parser until the file is decoded; only then it goes where the renderer finds it.
        let file = self.d.add_source(path, String::new());
        set_decoding_file(file);
        self.hash.update(&text);
        let (tree, spoiled) = syntax::parse(&text, file, &mut self.d);
        self.progress.incomplete |= spoiled.any;
        let replacements = Replacements::collect(&tree, &text, file, self.env, &mut self.d);
        replacements.each(|text| self.hash.update(text));
        let mut tree: DeTable<'_> = tree;
        replacements.apply(&mut tree);
        let decoder = Decoder { file, text: &text, registry: self.registry, replacements: &replacements, d: &mut self.d };
        let mut reader = FileReader { decoder, spoiled, config: &mut self.config, progress: &mut self.progress };
        let includes = reader.read(tree);
        drop(replacements);
        if let Some(source) = usize::try_from(file.0).ok().and_then(|at| self.d.sources.get_mut(at)) {
            source.text = text;
        }
        for pattern in includes {
            self.include(&pattern, &base, within);
        }
    }

    /// Reads what one pattern of `include` means.
    fn include(&mut self, pattern: &Located<String>, base: &Path, within: &[PathBuf]) {
        let by = pattern.span.clone();
        if within.len() >= DEPTH_MAX {
            return self.unreadable(by, format!("includes are nested more than {DEPTH_MAX} deep"));
        }
        // The directory is no pattern, whatever characters its name has.
        let full = Path::new(&glob::Pattern::escape(&base.to_string_lossy())).join(&pattern.value);
        let full = full.to_string_lossy();
        if !pattern.contains(['*', '?', '[']) {
            return self.file(&base.join(&pattern.value), by, within);
        }
        let fixed =
            Path::new(&pattern.value).iter().take_while(|part| !part.as_encoded_bytes().iter().any(|b| b"*?[".contains(b)));
        let directory = base.join(fixed.collect::<PathBuf>());
        self.watch(&directory);
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        match glob::glob_with(&full, options) {
            Ok(found) => {
                let mut found = found.peekable();
                if found.peek().is_none() {
                    self.nothing_matches(pattern, &directory);
                }
                for path in found {
                    match path {
                        Ok(path) => self.file(&path, by.clone(), within),
                        Err(error) => self.unreadable(by.clone(), format!("cannot read {}", error)),
                    }
                }
            }
            Err(error) => self.unreadable(by, format!("`{}` is not a file pattern: {}", pattern.value, error.msg)),
        }
    }

    /// A directory that is still empty is what such patterns are for; one that is not there, or has other files, is a slip.
    fn nothing_matches(&mut self, pattern: &Located<String>, directory: &Path) {
        let entries = std::fs::read_dir(directory).map(|mut entries| entries.next().is_none());
        let why = match entries {
            Ok(true) => return,
            Ok(false) => format!("{} has only other files", directory.display()),
            Err(error) => format!("{}: {error}", directory.display()),
        };
        self.d.warning(pattern.span.clone(), format!("`{}` matches no file", pattern.value)).label(why);
    }
}

/// Reads a file that must be text of bounded size.
fn read(path: &Path) -> Result<String, String> {
    let bytes = read_file(path, FILE_MAX)?;
    if bytes.contains(&0) {
        return Err("it is a binary file".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        format!("it is not UTF-8 text (line {})", memchr::memchr_iter(b'\n', valid).count() + 1)
    })
}

/// Brings the sections of one file into the tree.
struct FileReader<'a, 'i> {
    decoder: Decoder<'a, 'i>,
    spoiled: Spoiled,
    config: &'a mut Config,
    progress: &'a mut Progress,
}

impl<'i> FileReader<'_, 'i> {
    /// Returns the patterns of `[server] include`.
    fn read(&mut self, tree: DeTable<'i>) -> Vec<Located<String>> {
        let mut includes = Vec::new();
        let mut config = std::mem::take(self.config);
        for (key, mut value) in tree {
            match key.get_ref().as_ref() {
                "server" => {
                    includes = self.take_include(&mut value);
                    // A file may say no more about the server than what it includes.
                    let only_include =
                        matches!(value.get_ref(), DeValue::Table(table) if table.is_empty()) && !includes.is_empty();
                    if !only_include {
                        self.singleton("server", &key, value, &mut config.server);
                    }
                    config.server.include.extend(includes.iter().cloned());
                }
                "admin" => self.singleton("admin", &key, value, &mut config.admin),
                "log" => self.singleton("log", &key, value, &mut config.log),
                "limits" => self.singleton("limits", &key, value, &mut config.limits),
                "redis" => self.singleton("redis", &key, value, &mut config.redis),
                "consumer_source" => self.singleton("consumer_source", &key, value, &mut config.consumer_source),
                "identity" => self.singleton("identity", &key, value, &mut config.identity),
                "cache" => self.singleton("cache", &key, value, &mut config.cache),
                "listeners" => self.named("listeners", value, &mut config.listeners),
                "tiers" => self.named("tiers", value, &mut config.tiers),
                "consumers" => self.named("consumers", value, &mut config.consumers),
                "jwt" => self.named("jwt", value, &mut config.jwt),
                "upstreams" => self.named("upstreams", value, &mut config.upstreams),
                "chains" => self.named("chains", value, &mut config.chains),
                "routes" => self.named("routes", value, &mut config.routes),
                unknown => {
                    let span = self.decoder.span(key.span());
                    let found = self.decoder.d.error(span, format!("unknown section `{unknown}`"));
                    suggest(found, unknown, "sections", SECTIONS.into_iter());
                }
            }
        }
        *self.config = config;
        includes
    }

    /// Takes `include` out of `[server]`: it is about files, and each file may have one.
    fn take_include(&mut self, server: &mut Spanned<DeValue<'i>>) -> Vec<Located<String>> {
        let DeValue::Table(table) = server.get_mut() else { return Vec::new() };
        let Some(value) = table.remove("include") else { return Vec::new() };
        let decoded = self.decoder.decode(value, <Vec<Located<String>> as serde::Deserialize>::deserialize);
        decoded.map(|decoded| decoded.value).unwrap_or_default()
    }

    fn singleton<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        key: &Spanned<DeString<'i>>,
        value: Spanned<DeValue<'i>>,
        slot: &mut T,
    ) {
        let span = self.decoder.span(key.span());
        if let Some(first) = self.progress.singletons.get(name) {
            let first = first.clone();
            self.decoder.d.error(span, format!("`[{name}]` is defined twice")).label("again here").related(first, "first here");
            return;
        }
        self.progress.singletons.insert(name, span);
        if self.spoiled.has(name, None) {
            return;
        }
        if !matches!(value.get_ref(), DeValue::Table(_)) {
            expect_table(value, &format!("write [{name}]"), self.decoder.file, self.decoder.d);
            return;
        }
        match self.decoder.decode(value, T::deserialize) {
            Some(decoded) => {
                *slot = decoded.value;
                if let Some(whole) = decoded.whole {
                    self.progress.dirty.insert((name, String::new()), whole);
                }
            }
            None => {
                self.progress.dirty.insert((name, String::new()), Whole::default());
            }
        }
    }

    fn named<T: Section>(&mut self, section: &'static str, value: Spanned<DeValue<'i>>, map: &mut Named<T>) {
        let singular = section.trim_end_matches('s');
        let what = format!("write [{section}.NAME] for each {singular}");
        let Some(table) = expect_table(value, &what, self.decoder.file, self.decoder.d) else {
            self.progress.incomplete = true;
            return;
        };
        for (key, mut value) in table {
            let span = self.decoder.span(key.span());
            let name = key.into_inner().into_owned();
            let first = match map.get(&name) {
                Some(entry) => Some(entry.name.span.clone()),
                None => self.progress.failed.get(&(section, name.clone())).cloned(),
            };
            if let Some(first) = first {
                let found = self.decoder.d.error(span, format!("{singular} `{name}` is defined twice")).label("again here");
                if let Some(first) = first {
                    found.related(first, "first here");
                }
                continue;
            }
            if self.spoiled.has(section, Some(&name)) || !self.is_table(&value, &what) {
                self.progress.failed.insert((section, name), Some(span));
                continue;
            }
            let filters = T::FILTERS.then(|| self.decoder.filters(&mut value));
            match self.decoder.decode(value, T::deserialize) {
                Some(mut decoded) => {
                    if let Some(filters) = filters {
                        decoded.value.set_filters(filters);
                    }
                    if let Some(whole) = decoded.whole {
                        self.progress.dirty.insert((section, name.clone()), whole);
                    }
                    let name_at = Located { value: name.clone(), span: Some(span) };
                    map.insert(name, Entry { name: name_at, value: decoded.value });
                }
                None => {
                    self.progress.failed.insert((section, name), Some(span));
                }
            }
        }
    }

    fn is_table(&mut self, value: &Spanned<DeValue<'i>>, what: &str) -> bool {
        if let DeValue::Table(_) = value.get_ref() {
            return true;
        }
        expect_table(value.clone(), what, self.decoder.file, self.decoder.d);
        false
    }
}

/// FNV-1a over 64 bits: stable over builds and machines, unlike the standard library's hasher.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn update(&mut self, text: &str) {
        // A byte that no UTF-8 text has, so that "a" + "bc" is not "ab" + "c".
        for byte in text.bytes().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

//! What is wrong with a configuration, and where.
//!
//! Everything that looks at configuration reports here instead of returning at the first problem, because an operator
//! who mends a file wants the whole list in one run. A [`Span`] is a byte range in one source file; the renderers turn it
//! into line, column and a caret, for people ([`Diagnostics::render`]) and for machines ([`Diagnostics::to_json`]).

use std::ops::Range;
use std::path::PathBuf;

/// One configuration file as it was read.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// Index into [`Diagnostics::sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A byte range in one source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub file: FileId,
    pub range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

/// One finding: what is wrong, where, why, and how to mend it.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The headline, without a full stop: "unknown key `uptream`".
    pub message: String,
    /// The text under the caret, and where it points. Without a span the finding is about a file or an environment.
    pub primary: Option<(Span, String)>,
    /// Other places that belong to the finding, such as the first definition of a name that is defined twice.
    pub related: Vec<(Span, String)>,
    /// How to mend it.
    pub help: Option<String>,
}

impl Diagnostic {
    pub fn label(&mut self, text: impl Into<String>) -> &mut Self {
        if let Some((_, label)) = &mut self.primary {
            *label = text.into();
        }
        self
    }

    pub fn related(&mut self, span: Span, text: impl Into<String>) -> &mut Self {
        self.related.push((span, text.into()));
        self
    }

    pub fn help(&mut self, text: impl Into<String>) -> &mut Self {
        self.help = Some(text.into());
        self
    }
}

/// The collector. It owns the sources, so that spans can be rendered long after loading.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    pub sources: Vec<Source>,
    pub list: Vec<Diagnostic>,
}

impl Diagnostics {
    pub fn add_source(&mut self, path: PathBuf, text: String) -> FileId {
        self.sources.push(Source { path, text });
        FileId(u32::try_from(self.sources.len() - 1).unwrap_or(u32::MAX))
    }

    pub fn error(&mut self, span: impl Into<Option<Span>>, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Error, span.into(), message.into())
    }

    pub fn warning(&mut self, span: impl Into<Option<Span>>, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Warning, span.into(), message.into())
    }

    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    fn push(&mut self, severity: Severity, span: Option<Span>, message: String) -> &mut Diagnostic {
        let primary = span.map(|span| (span, String::new()));
        self.list.push_mut(Diagnostic { severity, message, primary, related: Vec::new(), help: None })
    }
}

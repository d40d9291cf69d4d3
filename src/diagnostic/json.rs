//! Diagnostics for machines: editors, CI, the admin interface.

use super::{Diagnostics, Severity, Span, line_and_column};
use serde_json::{Value, json};

impl Diagnostics {
    /// An array of objects with the members `severity`, `message`, `file`, `line`, `column`, `end_line`, `end_column`,
    /// `label`, `help` and `related`; lines and columns count from 1, columns in characters, the end is exclusive. What
    /// does not apply is null. Of findings beyond [`super::ERRORS_MAX`] the last object only says how many they are.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.to_value()).unwrap_or_else(|_| "[]".to_owned());
        text.push('\n');
        text
    }

    /// The same before it is text.
    pub fn to_value(&self) -> Value {
        let mut list: Vec<Value> = self
            .in_order()
            .into_iter()
            .map(|found| {
                let mut out = match &found.primary {
                    Some((span, _)) => self.span_json(span),
                    None => json!({ "file": null, "line": null, "column": null, "end_line": null, "end_column": null }),
                };
                let label = found.primary.as_ref().map(|(_, label)| label).filter(|label| !label.is_empty());
                let related = found.related.iter().map(|(span, text)| with(self.span_json(span), "message", json!(text)));
                let related: Vec<Value> = related.collect();
                let severity = match found.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                };
                out = with(out, "severity", json!(severity));
                out = with(out, "message", json!(found.message));
                out = with(out, "label", json!(label));
                out = with(out, "help", json!(found.help));
                with(out, "related", json!(related))
            })
            .collect();
        if self.left_off() > 0 {
            let nowhere = json!({ "file": null, "line": null, "column": null, "end_line": null, "end_column": null });
            let more = with(nowhere, "severity", json!("error"));
            let more = with(more, "message", json!(format!("and at least {} more", self.left_off())));
            list.push(with(with(with(more, "label", Value::Null), "help", Value::Null), "related", json!([])));
        }
        Value::Array(list)
    }

    fn span_json(&self, span: &Span) -> Value {
        let source = self.source(span.file);
        let text = source.map_or("", |source| source.text.as_str());
        let (line, column) = line_and_column(text, span.range.start);
        let (end_line, end_column) = line_and_column(text, span.range.end.max(span.range.start));
        let file = source.map(|source| source.path.to_string_lossy());
        json!({ "file": file, "line": line, "column": column, "end_line": end_line, "end_column": end_column })
    }
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
    object
}

//! One event with its fields, named as the journal names them: the journal and the JSON lines on standard error are made
//! of the same.

use std::fmt::{Debug, Write as _};
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::CHILD;

/// `SYSLOG_IDENTIFIER` of what children write themselves.
const CHILD_IDENTIFIER: &str = "forgejo-mcp";

/// The fields of one event, or of a span, in order. A name may be there twice: a span's, then the event's.
#[derive(Debug, Default, Clone)]
pub(crate) struct Entry(Vec<(String, String)>);

impl Entry {
    /// Adds a field under the journal's kind of name: capitals, digits and underscores, no underscore first.
    pub(crate) fn put(&mut self, name: &str, value: impl Into<String>) {
        let name = name.trim_start_matches('_').chars().map(|c| if c == '.' { '_' } else { c.to_ascii_uppercase() });
        self.0.push((name.filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect(), value.into()));
    }

    /// All fields.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing to a string fails only where the value's own Debug does.
        let _ = write!(text, "{value:?}");
        self.put(field.name(), text);
    }
}

/// Where entries go. Never waits.
pub(crate) trait Sink {
    /// Takes one.
    fn send(&self, entry: Entry);
}

/// Makes an entry of each event and hands it on.
#[derive(Debug)]
pub(crate) struct Entries<K> {
    sink: K,
    /// `SYSLOG_IDENTIFIER`: the program's name.
    program: String,
}

impl<K> Entries<K> {
    /// Into this.
    pub(crate) fn new(sink: K) -> Self {
        Self { sink, program: program() }
    }
}

/// The program's name.
pub(crate) fn program() -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl<S: Subscriber + for<'a> LookupSpan<'a>, K: Sink + 'static> Layer<S> for Entries<K> {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Entry::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Entry>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut entry = Entry::default();
        for span in context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(fields) = span.extensions().get::<Entry>() {
                entry.0.extend(fields.0.iter().cloned());
            }
        }
        let of = event.metadata();
        entry.put("PRIORITY", priority(*of.level()));
        entry.put("SYSLOG_IDENTIFIER", if of.target() == CHILD { CHILD_IDENTIFIER } else { &self.program });
        entry.put("TARGET", of.target());
        if let (Some(file), Some(line)) = (of.file(), of.line()) {
            entry.put("CODE_FILE", file);
            entry.put("CODE_LINE", line.to_string());
        }
        event.record(&mut entry);
        self.sink.send(entry);
    }
}

/// Of syslog(3).
const fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    }
}

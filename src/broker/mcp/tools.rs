//! Which tools of a child write: what `forgejo:read` must keep out.
//!
//! Decided by a reviewed table where there is one for the child's `serverInfo.name`, else by the child's own
//! annotations. A child is believed about its own tools only as far as that: it runs with the user's token either way,
//! so a lying child gains nothing, but a client with a read-only grant must find no way around. An unknown tool writes.

pub(crate) mod annotations;
pub(crate) mod call;
pub(crate) mod list;
pub(crate) mod mirrored;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use wire::config_file::Section;

/// What a tool does to the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Changes nothing.
    Reads,
    /// Adds something and takes nothing away.
    Adds,
    /// Anything else.
    Changes,
}

/// The reviewed tools of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    server: String,
    tools: HashMap<String, Effect>,
}

impl Table {
    /// Reads lines of a name, a tab and `read`, `add` or `change`; one line names the `server`; `#` begins a comment.
    /// The error names the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut server, mut tools) = (None, HashMap::new());
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.is_empty() && !text.starts_with('#')) {
            let (name, what) = text.split_once('\t').ok_or_else(|| format!("line {line}: has no tab"))?;
            let effect = match (name, what.trim_end()) {
                ("server", name) => {
                    server = Some(name.to_owned());
                    continue;
                }
                (_, "read") => Effect::Reads,
                (_, "add") => Effect::Adds,
                (_, "change") => Effect::Changes,
                _ => return Err(format!("line {line}: must say read, add or change")),
            };
            if tools.insert(name.to_owned(), effect).is_some() {
                return Err(format!("line {line}: `{name}` is there twice"));
            }
        }
        let server = server.ok_or("must have a line `server`, a tab, and the program's serverInfo.name")?;
        Ok(Self { server, tools })
    }

    /// What a tool does.
    pub(crate) fn effect(&self, tool: &str) -> Effect {
        self.tools.get(tool).copied().unwrap_or(Effect::Changes)
    }
}

/// All tables, and what is done with them.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    tables: Vec<Arc<Table>>,
    /// Whether hints that a table knows better are corrected in what is listed.
    pub(crate) correct_hints: bool,
}

impl Tables {
    /// The operator's tables before the ones that come with the broker.
    pub(crate) fn new(mut tables: Vec<Table>, correct_hints: bool) -> Self {
        // The text is ours and a test reads it; without it every tool of that program would count as writing.
        tables.extend(Table::parse(include_str!("tools/forgejo-mcp.tsv")));
        Self { tables: tables.into_iter().map(Arc::new).collect(), correct_hints }
    }

    /// `[tools]`: which of them write.
    pub(crate) fn read(mut section: Section) -> Self {
        let mut tables = Vec::new();
        for file in section.texts("tables", &[]) {
            let table = fs::read_to_string(&file).map_err(|e| e.to_string()).and_then(|text| Table::parse(&text));
            match table {
                Ok(table) => tables.push(table),
                Err(what) => section.complain("tables", format!("{file}: {what}")),
            }
        }
        let tables = Self::new(tables, section.flag("correct_hints", true));
        section.close();
        tables
    }

    /// The table for a program.
    pub(crate) fn of(&self, server: &str) -> Option<&Arc<Table>> {
        self.tables.iter().find(|table| table.server == server)
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new(Vec::new(), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_comes_with_the_broker_tells_67_reads_from_74_writes() {
        let tables = Tables::default();
        let table = tables.of("Forgejo MCP Server").expect("there");
        let reads = table.tools.values().filter(|&&effect| effect == Effect::Reads).count();
        assert_eq!((reads, table.tools.len() - reads), (67, 74));
        assert_eq!(table.effect("get_my_user_info"), Effect::Reads);
        assert_eq!(table.effect("create_issue"), Effect::Adds);
        assert_eq!(table.effect("delete_org"), Effect::Changes);
        assert_eq!(table.effect("a_tool_of_tomorrow"), Effect::Changes);
    }

    #[test]
    fn no_tool_whose_name_says_that_it_changes_something_is_called_a_read() {
        let tables = Tables::default();
        let table = tables.of("Forgejo MCP Server").expect("there");
        let verbs = ["add", "create", "delete", "edit", "update", "remove", "merge", "mark", "submit", "dispatch"];
        for (name, effect) in &table.tools {
            let says = verbs.iter().any(|verb| name.split('_').next() == Some(verb));
            assert!(!says || *effect != Effect::Reads, "{name}");
        }
    }

    #[test]
    fn a_table_with_a_mistake_names_its_line() {
        let table = [
            ("a\tread\n", "must have a line `server`"),
            ("server\tX\na read\n", "line 2: has no tab"),
            ("server\tX\n# fine\na\twrites\n", "line 3: must say"),
            ("server\tX\na\tread\na\tadd\n", "line 3: `a` is there twice"),
        ];
        for (text, what) in table {
            let error = Table::parse(text).expect_err(text);
            assert!(error.contains(what), "{error}");
        }
    }
}

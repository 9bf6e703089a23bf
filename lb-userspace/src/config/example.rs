//! The annotated example and the reference table, written out of the declarations that parse.

use std::fmt::{self, Display, Write as _};

use super::{
    declaration::{Child, Declaration, Key, Need},
    keys::Section as _,
    raw,
};

/// A configuration file that can be used after its required values are changed, and that explains every key.
pub fn example() -> String {
    let mut text = String::from(
        "# The configuration of one xvip node.\n\
         #\n\
         # Lines such as `#mode = \"auto\"`, with no space after the #, show a default: take away the # to change it. Those\n\
         # called optional have no default, and show an example; a section whose header has a # may be left out as a whole.\n\
         # `xvip check -c FILE` tells whether the file is right.\n",
    );
    write_section(&mut text, &raw::File::DECLARATION, &Header::default()).expect("a String takes any text");
    text
}

/// The keys of every section as Markdown tables.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         One TOML file, by convention `/etc/xvip/xvip.toml`. [The annotated example](../deploy/xvip.example.toml) is a file to start\n\
         from; `xvip check -c FILE` reports every mistake of a file with its line and column. Durations are written with their\n\
         unit: `\"500ms\"`, `\"2s\"`, `\"1h 30m\"`.\n",
    );
    write_tables(&mut text, &raw::File::DECLARATION, &Header::default()).expect("a String takes any text");
    text
}

/// What stands before the keys of a section.
#[derive(Default)]
struct Header {
    path: String,
    many: bool,
    /// It, or one around it, may be left out: the example shows it switched off.
    optional: bool,
}

impl Header {
    fn below(&self, child: &Child) -> Self {
        let path = if self.path.is_empty() { child.name.to_owned() } else { format!("{}.{}", self.path, child.name) };
        Self { path, many: child.many, optional: self.optional || child.optional }
    }

    fn switch(&self) -> &'static str {
        if self.optional { "#" } else { "" }
    }
}

impl Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.many { write!(f, "[[{}]]", self.path) } else { write!(f, "[{}]", self.path) }
    }
}

fn write_section(text: &mut String, declaration: &Declaration, header: &Header) -> fmt::Result {
    let switch = header.switch();
    if !header.path.is_empty() {
        writeln!(text)?;
        write_doc(text, declaration.doc)?;
        writeln!(text, "{switch}{header}")?;
    }
    for (index, key) in declaration.keys.iter().enumerate() {
        if index > 0 {
            writeln!(text)?;
        }
        write_doc(text, key.doc)?;
        write_key(text, key, switch)?;
    }
    for index in 1..repetitions(declaration) {
        writeln!(text, "\n{switch}{header}")?;
        for (name, examples) in declaration.keys.iter().filter_map(required) {
            writeln!(text, "{switch}{name} = {}", examples[index.min(examples.len() - 1)])?;
        }
    }
    for child in declaration.sections {
        write_section(text, child.declaration, &header.below(child))?;
    }
    Ok(())
}

fn write_key(text: &mut String, key: &Key, switch: &str) -> fmt::Result {
    let Key { name, need, .. } = key;
    let kind = key.kind_and_bounds();
    match need {
        Need::Required(examples) => {
            writeln!(text, "# ({kind}; required)\n{switch}{name} = {}", examples[0])
        }
        Need::Conditional(example) => {
            writeln!(text, "# ({kind}; required, with the exception above)\n{name} = {example}")
        }
        Need::Default(value) => writeln!(text, "# ({kind})\n#{name} = {value}"),
        Need::Optional(example) => writeln!(text, "# ({kind}; optional)\n#{name} = {example}"),
    }
}

fn write_doc(text: &mut String, doc: &[&str]) -> fmt::Result {
    doc.iter().try_for_each(|line| writeln!(text, "#{line}"))
}

fn write_tables(text: &mut String, declaration: &Declaration, header: &Header) -> fmt::Result {
    if !header.path.is_empty() {
        let prose = declaration.doc.concat();
        writeln!(text, "\n## `{header}`\n\n{}\n", prose.trim())?;
    }
    if !declaration.keys.is_empty() {
        writeln!(text, "| key | value | default | meaning |\n|---|---|---|---|")?;
    }
    for key in declaration.keys {
        let default = match key.need {
            Need::Required(_) => "required".to_owned(),
            Need::Conditional(_) => "required, with an exception".to_owned(),
            Need::Default(value) => format!("`{value}`"),
            Need::Optional(_) => "none".to_owned(),
        };
        let (kind, meaning) = (key.kind_and_bounds(), key.doc.concat());
        writeln!(text, "| `{}` | {kind} | {default} | {} |", key.name, meaning.trim())?;
    }
    for child in declaration.sections {
        write_tables(text, child.declaration, &header.below(child))?;
    }
    Ok(())
}

fn required(key: &Key) -> Option<(&'static str, &'static [&'static str])> {
    match key.need {
        Need::Required(examples) => Some((key.name, examples)),
        Need::Conditional(_) | Need::Default(_) | Need::Optional(_) => None,
    }
}

/// How often the example shows the section.
fn repetitions(declaration: &Declaration) -> usize {
    declaration.keys.iter().filter_map(required).map(|(_, examples)| examples.len()).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use toml::{Table, Value};

    use super::*;
    use crate::config::parse;

    /// The example with every section, and with those keys switched on whose kind is wanted.
    fn switched_on(wanted: fn(&Need) -> bool) -> String {
        let mut declaration = &raw::File::DECLARATION;
        let mut lines = Vec::new();
        for line in example().lines() {
            let bare = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
            if bare.starts_with('[') {
                let path = bare.trim_matches(['[', ']']).split('.');
                declaration = path.fold(&raw::File::DECLARATION, |declaration, name| {
                    declaration.sections.iter().find(|child| child.name == name).expect("a known section").declaration
                });
                lines.push(bare.to_owned());
                continue;
            }
            let name = bare.split_once(" = ").map(|(name, _)| name).filter(|_| !bare.starts_with('#'));
            let key = name.map(|name| declaration.keys.iter().find(|key| key.name == name).expect("a known key"));
            lines.push(match key {
                Some(key) if wanted(&key.need) => bare.to_owned(),
                _ => line.to_owned(),
            });
        }
        lines.join("\n")
    }

    #[test]
    fn the_example_shows_a_node_without_vrrp() {
        let parsed = parse(&example(), "example").unwrap_or_else(|report| panic!("{report}"));
        assert!(parsed.vrrp.is_empty() && parsed.virtual_servers.len() == 1);
    }

    #[test]
    fn the_defaults_shown_are_the_defaults() {
        let bare = switched_on(|need| matches!(need, Need::Required(_)));
        let shown = switched_on(|need| !matches!(need, Need::Optional(_)));
        assert!(shown.contains("\nverify = true\n") && shown.contains("\n#host = "), "{shown}");
        let parsed = parse(&shown, "example with its defaults").unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(parsed, parse(&bare, "example with every section").unwrap_or_else(|report| panic!("{report}")));
        assert!(parsed.vrrp.len() == 1 && parsed.vrrp[0].scripts.len() == 1);
    }

    #[test]
    fn every_key_of_every_section_is_shown_with_a_value_it_can_have() {
        let text = switched_on(|_| true);
        let report = parse(&text, "example with everything").expect_err("some keys exclude each other");
        // What each is by itself has been checked, and found good, before that.
        let exclusive = [
            "`password` means nothing to version 3, which has no passwords",
            "the sync_group `both-families` has one member only",
        ];
        let mut said: Vec<_> = report.mistakes().iter().map(|mistake| mistake.message.as_str()).collect();
        said.retain(|said| !exclusive.contains(said));
        assert!(said.is_empty() && report.mistakes().len() == exclusive.len(), "{report}");
        assert_holds_all(&raw::File::DECLARATION, &text.parse::<Table>().expect("TOML"));
    }

    fn assert_holds_all(declaration: &Declaration, table: &Table) {
        for key in declaration.keys {
            assert!(table.contains_key(key.name), "`{}` is not in the example", key.name);
        }
        for child in declaration.sections {
            match &table[child.name] {
                Value::Table(table) if !child.many => assert_holds_all(child.declaration, table),
                Value::Array(tables) if child.many => {
                    assert_holds_all(child.declaration, tables[0].as_table().expect("a section"));
                }
                other => panic!("`{}` is {other}", child.name),
            }
        }
    }

    /// Compares a committed file with what it is generated from; `XVIP_WRITE_GENERATED=1` writes it instead.
    fn assert_current(file: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        if env::var_os("XVIP_WRITE_GENERATED").is_some() {
            fs::write(&path, text).expect("the file can be written");
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "{file} is not what the declarations say: XVIP_WRITE_GENERATED=1 cargo test -p lb-userspace --lib config::example"
        );
    }

    #[test]
    fn the_sections_in_the_documentation_are_right() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vrrp.md");
        let text = fs::read_to_string(path).expect("the documentation");
        let shown: Vec<&str> = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(shown.len(), 6);
        for section in shown {
            let config = parse(&(example() + section), "docs/vrrp.md").unwrap_or_else(|report| panic!("{report}"));
            assert!(config.vrrp.len() == 1 || config.sync.is_some(), "{section}");
        }
    }

    #[test]
    fn the_committed_example_is_current() {
        assert_current("deploy/xvip.example.toml", &example());
    }

    #[test]
    fn the_committed_reference_is_current() {
        assert_current("docs/configuration.md", &reference());
    }
}

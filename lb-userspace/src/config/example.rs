//! The annotated example and the reference table, written out of the declarations that parse.

use std::fmt::{self, Write as _};

use super::{
    declaration::{Declaration, Key, Need},
    keys::Section as _,
    raw,
};

/// A configuration file that can be used after its required values are changed, and that explains every key.
pub fn example() -> String {
    let mut text = String::from(
        "# The configuration of one xvip node.\n\
         #\n\
         # Lines such as `#mode = \"auto\"`, with no space after the #, show a default: take away the # to change it. Those\n\
         # called optional have no default, and show an example. `xvip check -c FILE` tells whether the file is right.\n",
    );
    write_section(&mut text, &raw::File::DECLARATION, "", false).expect("a String takes any text");
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
    write_tables(&mut text, &raw::File::DECLARATION, "", false).expect("a String takes any text");
    text
}

fn write_section(text: &mut String, declaration: &Declaration, path: &str, many: bool) -> fmt::Result {
    if !path.is_empty() {
        writeln!(text)?;
        write_doc(text, declaration.doc)?;
        writeln!(text, "{}", header(path, many))?;
    }
    for (index, key) in declaration.keys.iter().enumerate() {
        if index > 0 {
            writeln!(text)?;
        }
        write_doc(text, key.doc)?;
        write_key(text, key)?;
    }
    for index in 1..repetitions(declaration) {
        writeln!(text, "\n{}", header(path, many))?;
        for (name, examples) in declaration.keys.iter().filter_map(required) {
            writeln!(text, "{name} = {}", examples[index.min(examples.len() - 1)])?;
        }
    }
    for child in declaration.sections {
        write_section(text, child.declaration, &below(path, child.name), child.many)?;
    }
    Ok(())
}

fn write_key(text: &mut String, key: &Key) -> fmt::Result {
    let Key { name, need, .. } = key;
    let kind = key.kind_and_bounds();
    match need {
        Need::Required(examples) => {
            writeln!(text, "# ({kind}; required)\n{name} = {}", examples[0])
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

fn write_tables(text: &mut String, declaration: &Declaration, path: &str, many: bool) -> fmt::Result {
    if !path.is_empty() {
        let prose = declaration.doc.concat();
        writeln!(text, "\n## `{}`\n\n{}\n", header(path, many), prose.trim())?;
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
        write_tables(text, child.declaration, &below(path, child.name), child.many)?;
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

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn header(path: &str, many: bool) -> String {
    if many { format!("[[{path}]]") } else { format!("[{path}]") }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use toml::{Table, Value};

    use super::*;
    use crate::config::parse;

    /// The example with those keys switched on whose kind is wanted.
    fn switched_on(wanted: fn(&Need) -> bool) -> String {
        let mut declaration = &raw::File::DECLARATION;
        let mut lines = Vec::new();
        for line in example().lines() {
            if line.starts_with('[') {
                let path = line.trim_matches(['[', ']']).split('.');
                declaration = path.fold(&raw::File::DECLARATION, |declaration, name| {
                    declaration.sections.iter().find(|child| child.name == name).expect("a known section").declaration
                });
            }
            let bare = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty());
            let key = bare.and_then(|bare| bare.split_once(" = "));
            let key = key.map(|(name, _)| declaration.keys.iter().find(|key| key.name == name).expect("a known key"));
            lines.push(match key {
                Some(key) if wanted(&key.need) => line.trim_start_matches('#').to_owned(),
                _ => line.to_owned(),
            });
        }
        lines.join("\n")
    }

    #[test]
    fn the_defaults_shown_are_the_defaults() {
        let shown = switched_on(|need| matches!(need, Need::Default(_)));
        assert!(shown.contains("\nverify = true\n") && shown.contains("\n#host = "), "{shown}");
        let parsed = parse(&shown, "example with its defaults").unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(parsed, parse(&example(), "example").unwrap_or_else(|report| panic!("{report}")));
    }

    #[test]
    fn every_key_of_every_section_is_shown_with_a_value_it_can_have() {
        let text = switched_on(|_| true);
        parse(&text, "example with everything").unwrap_or_else(|report| panic!("{report}"));
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
    fn the_committed_example_is_current() {
        assert_current("deploy/xvip.example.toml", &example());
    }

    #[test]
    fn the_committed_reference_is_current() {
        assert_current("docs/configuration.md", &reference());
    }
}

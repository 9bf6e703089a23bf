//! Reading of sections key by key, with the place of each, so that one mistake does not hide the next.

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    declaration::{Declaration, Key, Need},
    leaf::{self, Leaf},
    report::{Mistakes, Span},
};

/// What the file says of one key.
#[derive(Debug)]
pub(super) enum Field<T> {
    /// The value, and where its key stands.
    Written(Spanned<T>, Span),
    Default(T),
    Absent,
    /// Something that has been reported already.
    Wrong,
}

/// Where in the file a section stands.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) header: Span,
    /// Name by name; empty for the file itself.
    pub(super) path: Vec<&'static str>,
    pub(super) many: bool,
    /// Required keys that are there, under a wrong name.
    misspelt: Vec<&'static str>,
}

/// A section that can be read.
pub(super) trait Section: Sized {
    const DECLARATION: Declaration;

    fn read(table: &DeTable<'_>, place: Place, reader: &mut Reader) -> Self;

    /// Stands for a section that was something else altogether.
    fn wrong(place: Place) -> Self;

    /// Where it begins; where its parent begins, if it was left out.
    fn header(&self) -> Span;
}

/// A section that stands once, or not at all and then with its defaults.
#[derive(Debug)]
pub(super) struct One<S>(pub(super) S);

/// A section that stands once, or not at all.
#[derive(Debug)]
pub(super) struct Maybe<S>(pub(super) Option<S>);

/// A section that stands at least once.
#[derive(Debug)]
pub(super) struct Many<S>(pub(super) Vec<S>);

/// A section that stands any number of times, or not at all.
#[derive(Debug)]
pub(super) struct Any<S>(pub(super) Vec<S>);

/// How a child is read.
pub(super) trait Nested: Sized {
    const MANY: bool;
    const OPTIONAL: bool;
    const DECLARATION: &'static Declaration;

    fn read(table: &DeTable<'_>, name: &'static str, parent: &Place, reader: &mut Reader) -> Self;
    fn wrong(name: &'static str, parent: &Place) -> Self;
}

/// State of one reading.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) mistakes: Mistakes,
    pub(super) root: &'static Declaration,
}

impl Place {
    pub(super) fn root() -> Self {
        Self { header: 0..0, path: Vec::new(), many: false, misspelt: Vec::new() }
    }

    fn child(&self, name: &'static str, many: bool, header: Span) -> Self {
        let path = self.path.iter().copied().chain([name]).collect();
        Self { header, path, many, misspelt: Vec::new() }
    }

    /// `[dataplane]`, `[[virtual_server.backend]]`, or `the file`.
    pub(super) fn title(&self) -> String {
        match (self.path.is_empty(), self.many) {
            (true, _) => "the file".to_owned(),
            (false, false) => format!("[{}]", self.path.join(".")),
            (false, true) => format!("[[{}]]", self.path.join(".")),
        }
    }
}

impl<T> Field<T> {
    /// Where the value stands, if it was written.
    pub(super) fn span(&self) -> Option<Span> {
        match self {
            Self::Written(value, _) => Some(value.span()),
            _ => None,
        }
    }

    /// Where the key stands, if it was written.
    pub(super) fn key_span(&self) -> Option<&Span> {
        match self {
            Self::Written(_, key) => Some(key),
            _ => None,
        }
    }

    pub(super) fn value(&self) -> Option<&T> {
        match self {
            Self::Written(value, _) => Some(value.get_ref()),
            Self::Default(value) => Some(value),
            Self::Absent | Self::Wrong => None,
        }
    }

    pub(super) fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong)
    }

    /// Refuses what was written beyond the bounds.
    pub(super) fn within(self, least: &str, most: &str, key: &Key, table: &DeTable<'_>, reader: &mut Reader) -> Self
    where
        T: Leaf + PartialOrd,
    {
        match &self {
            Self::Written(value, _) if !(declared::<T>(least)..=declared::<T>(most)).contains(value.get_ref()) => {
                let written = match lookup(table, key.name).map(|(_, value)| value.get_ref()) {
                    Some(DeValue::Integer(digits)) => digits.to_string(),
                    Some(DeValue::String(text)) => format!("{text:?}"),
                    _ => "the value".to_owned(),
                };
                reader.mistakes.add(&value.span(), format!("`{}`: {written} is out of range", key.name), key.help());
                Self::Wrong
            }
            _ => self,
        }
    }
}

impl Reader {
    pub(super) fn key<T: Leaf>(&mut self, table: &DeTable<'_>, key: &'static Key, place: &Place) -> Field<T> {
        let Some((name, value)) = lookup(table, key.name) else {
            return match key.need {
                Need::Default(value) => Field::Default(declared(value)),
                Need::Optional(_) => Field::Absent,
                Need::Required(_) | Need::Conditional(_) if place.misspelt.contains(&key.name) => Field::Wrong,
                Need::Conditional(_) => Field::Absent,
                Need::Required(_) => {
                    let title = place.title();
                    let help = format!("add `{} = {}` below `{title}`", key.name, key.need.example());
                    self.mistakes.add_missing(&place.header, format!("{title} needs `{}`", key.name), help);
                    Field::Wrong
                }
            };
        };
        let mut faults = Vec::new();
        let read = T::read(value, &mut faults);
        for (at, fault) in &faults {
            self.mistakes.add(at, format!("`{}`: {fault}", key.name), key.help());
        }
        match read {
            Some(read) if faults.is_empty() => Field::Written(Spanned::new(value.span(), read), name.span()),
            _ => Field::Wrong,
        }
    }

    pub(super) fn refuse_unknown_keys(&mut self, table: &DeTable<'_>, declaration: &Declaration, place: &mut Place) {
        for name in table.keys() {
            let (at, name) = (name.span(), name.get_ref().as_ref());
            if declaration.names().any(|known| known == name) {
                continue;
            }
            let help = if let Some(meant) = nearest(name, declaration.names()) {
                place.misspelt.push(meant);
                format!("did you mean `{meant}`?")
            } else if let Some(home) = home_of(name, self.root, Place::root()) {
                format!("`{name}` belongs below `{home}`")
            } else {
                format!("known here: {}", declaration.names().collect::<Vec<_>>().join(", "))
            };
            self.mistakes.add(&at, format!("unknown key `{name}` in {}", place.title()), help);
        }
    }
}

impl<S: Section> Nested for One<S> {
    const MANY: bool = false;
    const OPTIONAL: bool = false;
    const DECLARATION: &'static Declaration = &S::DECLARATION;

    fn read(table: &DeTable<'_>, name: &'static str, parent: &Place, reader: &mut Reader) -> Self {
        let Some((_, value)) = lookup(table, name) else {
            if parent.misspelt.contains(&name) {
                return Self::wrong(name, parent);
            }
            return Self(S::read(&DeTable::new(), parent.child(name, false, parent.header.clone()), reader));
        };
        let mut place = parent.child(name, false, value.span());
        if parent.misspelt.contains(&name) {
            // `[dataplan]` and a right `[dataplane.timeouts]`: the keys of this one are in the misspelt one.
            place.misspelt.extend(S::DECLARATION.names());
        }
        match value.get_ref() {
            DeValue::Table(table) => Self(S::read(table, place, reader)),
            other => {
                let title = place.title();
                let message = format!("`{name}` is one section, not {}", leaf::shape(other));
                reader.mistakes.add(&value.span(), message, format!("write `{title}`, once, with its keys below it"));
                Self(S::wrong(place))
            }
        }
    }

    fn wrong(name: &'static str, parent: &Place) -> Self {
        Self(S::wrong(parent.child(name, false, parent.header.clone())))
    }
}

impl<S: Section> Nested for Maybe<S> {
    const MANY: bool = false;
    const OPTIONAL: bool = true;
    const DECLARATION: &'static Declaration = &S::DECLARATION;

    fn read(table: &DeTable<'_>, name: &'static str, parent: &Place, reader: &mut Reader) -> Self {
        Self(lookup(table, name).map(|_| One::read(table, name, parent, reader).0))
    }

    fn wrong(_: &'static str, _: &Place) -> Self {
        Self(None)
    }
}

impl<S: Section> Nested for Any<S> {
    const MANY: bool = true;
    const OPTIONAL: bool = true;
    const DECLARATION: &'static Declaration = &S::DECLARATION;

    fn read(table: &DeTable<'_>, name: &'static str, parent: &Place, reader: &mut Reader) -> Self {
        match lookup(table, name).map(|(_, value)| value.get_ref()) {
            None => Self(Vec::new()),
            Some(DeValue::Array(array)) if array.is_empty() => Self(Vec::new()),
            Some(_) => Self(Many::read(table, name, parent, reader).0),
        }
    }

    fn wrong(_: &'static str, _: &Place) -> Self {
        Self(Vec::new())
    }
}

impl<S: Section> Nested for Many<S> {
    const MANY: bool = true;
    const OPTIONAL: bool = false;
    const DECLARATION: &'static Declaration = &S::DECLARATION;

    fn read(table: &DeTable<'_>, name: &'static str, parent: &Place, reader: &mut Reader) -> Self {
        let found = lookup(table, name).map(|(_, value)| value);
        let place = |at: Span| parent.child(name, true, at);
        let title = place(0..0).title();
        let mut items = Vec::new();
        let refuse = |value: &Spanned<DeValue<'_>>, reader: &mut Reader| {
            let message = format!("`{name}` is a list of sections, not {}", leaf::shape(value.get_ref()));
            reader.mistakes.add(&value.span(), message, format!("write `{title}` before the keys of each"));
        };
        match found.map(|value| (value, value.get_ref())) {
            Some((_, DeValue::Array(array))) if !array.is_empty() => {
                for value in array.iter() {
                    match value.get_ref() {
                        DeValue::Table(table) => items.push(S::read(table, place(value.span()), reader)),
                        _ => refuse(value, reader),
                    }
                }
            }
            // One pair of brackets too few: what is below it is still worth reading.
            Some((value, DeValue::Table(table))) => {
                refuse(value, reader);
                items.push(S::read(table, place(value.span()), reader));
            }
            Some((value, DeValue::Array(_))) => {
                reader.mistakes.add(&value.span(), format!("`{name}` is empty"), format!("add a `{title}` section"));
            }
            Some((value, _)) => refuse(value, reader),
            None if parent.misspelt.contains(&name) => {}
            None => {
                let message = format!("{} needs at least one {title}", parent.title());
                reader.mistakes.add_missing(&parent.header, message, format!("add a `{title}` section"));
            }
        }
        Self(items)
    }

    fn wrong(_: &'static str, _: &Place) -> Self {
        Self(Vec::new())
    }
}

/// A value out of a declaration. Panics on one that does not parse; a test reads every declared value.
pub(super) fn declared<T: Leaf>(toml: &str) -> T {
    let value = DeValue::parse(toml).expect("declared values are TOML");
    T::read(&value, &mut Vec::new()).expect("declared values are of their type")
}

type Entry<'t, 'i> = (&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>);

fn lookup<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<Entry<'t, 'i>> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

/// The known name that `name` was most likely meant to be.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let plain = |name: &str| name.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).collect::<String>().to_lowercase();
    let name = plain(name);
    // A file can hold a key of a megabyte, and the distance takes time in proportion to both lengths.
    if name.len() > 64 {
        return None;
    }
    let distance = |other: &&'static str| strsim::damerau_levenshtein(&name, &plain(other));
    known.min_by_key(distance).filter(|meant| distance(meant) * 3 <= name.chars().count().max(3))
}

/// The title of the section that has this key.
fn home_of(name: &str, declaration: &Declaration, place: Place) -> Option<String> {
    if declaration.names().any(|known| known == name) {
        return Some(place.title());
    }
    declaration
        .sections
        .iter()
        .find_map(|child| home_of(name, child.declaration, place.child(child.name, child.many, 0..0)))
}

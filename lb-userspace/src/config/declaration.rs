//! Declarations of keys and sections: each is written once, with its meaning, type, default and bounds, and from that come the
//! reader that keeps spans and collects mistakes, the check for unknown keys, the annotated example and the reference.

/// One section of the file.
#[derive(Debug)]
pub(super) struct Declaration {
    pub(super) doc: &'static [&'static str],
    pub(super) keys: &'static [Key],
    pub(super) sections: &'static [Child],
}

/// One key of a section.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) doc: &'static [&'static str],
    /// What the value is, in the user's words.
    pub(super) kind: &'static str,
    pub(super) need: Need,
    /// Smallest and largest value, as TOML.
    pub(super) bounds: Option<(&'static str, &'static str)>,
}

/// Whether a key may be left out. Values are TOML.
#[derive(Debug)]
pub(super) enum Need {
    /// It may not. One example for each time the section stands in the annotated example.
    Required(&'static [&'static str]),
    /// It may not, unless something else in the file makes it needless: [`checked`](super::checked) tells. An example.
    Conditional(&'static str),
    /// Leaving it out means this value.
    Default(&'static str),
    /// Leaving it out means something that no value says. An example.
    Optional(&'static str),
}

/// A section inside a section.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) name: &'static str,
    /// `[[name]]` rather than `[name]`.
    pub(super) many: bool,
    /// Leaving it out means something else than a section of defaults.
    pub(super) optional: bool,
    pub(super) declaration: &'static Declaration,
}

/// Declares a section: a struct with a [`Field`](super::keys::Field) for each key, and its
/// [`Section`](super::keys::Section).
///
/// A key is `name: Type = required(example, example …)`, `= conditional(example)`, `= default(value)` or `= optional(example)`, then
/// `from least to most`
/// where it has bounds. Values are Rust literals that read the same in TOML.
macro_rules! section {
    (
        $(#[doc = $doc:literal])*
        struct $name:ident {
            $($(#[doc = $key_doc:literal])* $key:ident: $type:ty = $need:ident($($value:expr),+) $(from $least:literal to $most:literal)?,)*
        } $(sections { $($child:ident: $nested:ty,)+ })?
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub(super) struct $name {
            header: $crate::config::report::Span,
            $($(#[doc = $key_doc])* pub(super) $key: $crate::config::keys::Field<$type>,)*
            $($(pub(super) $child: $nested,)+)?
        }

        impl $crate::config::keys::Section for $name {
            const DECLARATION: $crate::config::declaration::Declaration = $crate::config::declaration::Declaration {
                doc: &[$($doc),*],
                keys: &[$($crate::config::declaration::Key {
                    name: $crate::config::declaration::without_raw(stringify!($key)),
                    doc: &[$($key_doc),*],
                    kind: <$type as $crate::config::leaf::Leaf>::KIND,
                    need: $crate::config::declaration::Need::$need(&[$(stringify!($value)),+]),
                    bounds: $crate::config::declaration::section!(@bounds $($least $most)?),
                }),*],
                sections: &[$($($crate::config::declaration::Child {
                    name: stringify!($child),
                    many: <$nested as $crate::config::keys::Nested>::MANY,
                    optional: <$nested as $crate::config::keys::Nested>::OPTIONAL,
                    declaration: <$nested as $crate::config::keys::Nested>::DECLARATION,
                }),+)?],
            };

            fn read(
                table: &toml::de::DeTable<'_>,
                mut place: $crate::config::keys::Place,
                reader: &mut $crate::config::keys::Reader,
            ) -> Self {
                static DECLARATION: $crate::config::declaration::Declaration =
                    <$name as $crate::config::keys::Section>::DECLARATION;
                reader.refuse_unknown_keys(table, &DECLARATION, &mut place);
                Self {
                    $($key: {
                        let key = DECLARATION.key(stringify!($key));
                        reader.key::<$type>(table, key, &place) $(.within(stringify!($least), stringify!($most), key, table, reader))?
                    },)*
                    $($($child: $crate::config::keys::Nested::read(table, stringify!($child), &place, reader),)+)?
                    header: place.header,
                }
            }

            fn wrong(place: $crate::config::keys::Place) -> Self {
                Self {
                    $($key: $crate::config::keys::Field::Wrong,)*
                    $($($child: $crate::config::keys::Nested::wrong(stringify!($child), &place),)+)?
                    header: place.header,
                }
            }

            fn header(&self) -> $crate::config::report::Span {
                self.header.clone()
            }
        }
    };
    (@bounds) => { None };
    (@bounds $least:literal $most:literal) => { Some((stringify!($least), stringify!($most))) };
}

pub(super) use section;

impl Declaration {
    /// The declaration behind a field.
    pub(super) fn key(&'static self, field: &str) -> &'static Key {
        let name = without_raw(field);
        self.keys.iter().find(|key| key.name == name).expect("every field is declared")
    }

    /// Names of all keys and sections.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|key| key.name).chain(self.sections.iter().map(|child| child.name))
    }
}

/// The words that [`section!`] is written with.
impl Need {
    pub(super) const fn required(examples: &'static [&'static str]) -> Self {
        Self::Required(examples)
    }

    pub(super) const fn conditional(example: &'static [&'static str]) -> Self {
        Self::Conditional(example[0])
    }

    pub(super) const fn default(value: &'static [&'static str]) -> Self {
        Self::Default(value[0])
    }

    pub(super) const fn optional(example: &'static [&'static str]) -> Self {
        Self::Optional(example[0])
    }
}

impl Need {
    /// A value that the key can have.
    pub(super) fn example(&self) -> &'static str {
        match self {
            Self::Required(examples) => examples[0],
            Self::Conditional(value) | Self::Default(value) | Self::Optional(value) => value,
        }
    }
}

impl Key {
    /// "duration from 100ms to 1h"
    pub(super) fn kind_and_bounds(&self) -> String {
        match self.bounds {
            None => self.kind.to_owned(),
            Some((least, most)) => {
                format!("{} from {} to {}", self.kind, least.trim_matches('"'), most.trim_matches('"'))
            }
        }
    }

    pub(super) fn help(&self) -> String {
        format!(
            "`{}` takes {}, for example `{} = {}`",
            self.name,
            self.kind_and_bounds(),
            self.name,
            self.need.example()
        )
    }
}

/// `type` for the field `r#type`.
pub(super) const fn without_raw(name: &str) -> &str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

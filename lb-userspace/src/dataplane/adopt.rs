//! What a new daemon takes over from the one before it.
//!
//! Connections, counts and leases are kept: their maps are loaded into the new programs. Everything else follows from the configuration and
//! is made anew beside what is in use, so that the old programs go on with the old tables until the new ones are complete; one
//! update of each link then puts the new programs in place.

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use aya_obj::Object;
use lb_common::abi::{Backend, BackendId, LAYOUT, MAX_BACKENDS, Settings, names};

use super::{LoadError, OBJECT, Options, pins::Pins};

/// What is known of the daemon before this one.
#[derive(Debug, Default)]
pub(super) struct Former {
    /// The generation of its settings.
    pub(super) generation: u32,
    pub(super) backends: Vec<(BackendId, Backend)>,
    /// Maps that go on.
    pub(super) kept: Vec<&'static str>,
    /// The kernel empties an array of programs that nobody has open, and the old programs jump by it until they are replaced.
    _programs: Option<MapData>,
}

impl Former {
    /// Looks at what is pinned. `sizes` are the entries of the maps whose sizes are configured.
    pub(super) fn find(pins: &Pins, sizes: &[(&'static str, u32)]) -> Result<Self, LoadError> {
        if let Some(other) = pins.other_layouts().first() {
            log::warn!("{}", foreign(other));
        }
        let Fit { kept, losses } = Fit::of(pins, sizes)?;
        losses.iter().for_each(|loss| log::warn!("{}", loss.text));
        let generation = array::<Settings>(&pins.map(names::SETTINGS))
            .and_then(|settings| Ok(settings.get(&0, 0)?.generation()))
            .unwrap_or_default();
        let backends = array::<Backend>(&pins.map(names::BACKENDS)).map(|table| present(&table)).unwrap_or_default();
        let programs = MapData::from_pin(pins.map(names::PROGRAMS)).ok();
        Ok(Self { generation, backends, kept, _programs: programs })
    }
}

/// Something of a former data plane that a new daemon cannot go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Whether open connections are among it.
    pub connections: bool,
    /// What, and why, as a sentence.
    pub text: String,
}

/// What this program would lose of the data plane that is there, which may be in use; `None` if there is none.
pub fn losses(options: &Options) -> Result<Option<Vec<Loss>>, LoadError> {
    let Some(root) = options.bpffs.as_deref().filter(|root| root.exists()) else { return Ok(None) };
    let pins = Pins::look(root);
    let others = pins.other_layouts();
    if others.is_empty() && !pins.map(names::SETTINGS).exists() {
        return Ok(None);
    }
    let other = others.first().map(|other| Loss { connections: true, text: foreign(other) });
    let Fit { losses, .. } = Fit::of(&pins, &options.sizes())?;
    Ok(Some(other.into_iter().chain(losses).collect()))
}

fn foreign(layout: &Path) -> String {
    format!(
        "{} was left by an xvip with another layout of maps than this one's, which is {LAYOUT}: its connections are forgotten. \
         Each is found again at its client's next packet if the same backend and port come out for it, and reset if not.",
        layout.display()
    )
}

/// Which of the maps that are pinned fit these programs.
struct Fit {
    kept: Vec<&'static str>,
    losses: Vec<Loss>,
}

impl Fit {
    fn of(pins: &Pins, sizes: &[(&'static str, u32)]) -> Result<Self, LoadError> {
        let object = Object::parse(OBJECT).map_err(aya::EbpfError::from)?;
        let mut fit = Self { kept: Vec::new(), losses: Vec::new() };
        for group in names::KEPT {
            if group.iter().any(|name| !pins.map(name).exists()) {
                continue;
            }
            match group.iter().find_map(|name| difference(&object, sizes, name, &pins.map(name))) {
                None => fit.kept.extend(group),
                Some(difference) => fit.losses.push(Loss::of(group, &difference)),
            }
        }
        Ok(fit)
    }
}

impl Loss {
    fn of(group: &[&str], difference: &str) -> Self {
        let connections = group == names::FLOWS;
        let text = match connections {
            true => format!(
                "the table of connections does not fit any more ({difference}): all connections are forgotten. Each is found again at its \
                 client's next packet if the same backend and port come out for it, and reset if not."
            ),
            false => format!("what {} held is lost: {difference}", group.join(" and ")),
        };
        Self { connections, text }
    }
}

/// How the map at `path` differs from the one that this object would make.
fn difference(object: &Object, sizes: &[(&'static str, u32)], name: &str, path: &Path) -> Option<String> {
    let wanted = object.maps.get(name)?;
    let found = match MapInfo::from_pin(path) {
        Ok(found) => found,
        Err(error) => return Some(format!("{}: {error}", path.display())),
    };
    let entries = sizes.iter().find(|(sized, _)| *sized == name).map_or(wanted.max_entries(), |(_, entries)| *entries);
    let kind = found.map_type().map_or(u32::MAX, |kind| kind as u32);
    let numbers = [
        ("type", kind, wanted.map_type()),
        ("key bytes", found.key_size(), wanted.key_size()),
        ("value bytes", found.value_size(), wanted.value_size()),
        ("entries", found.max_entries(), entries),
        ("flags", found.map_flags(), wanted.map_flags()),
    ];
    let unequal = numbers.into_iter().find(|(_, found, wanted)| found != wanted);
    unequal.map(|(what, found, wanted)| format!("{name} has {what} {found}, and {wanted} are wanted"))
}

fn array<V: aya::Pod>(path: &Path) -> Result<Array<MapData, V>, MapError> {
    MapData::from_pin(path).and_then(Map::from_map_data)?.try_into()
}

fn present(table: &Array<MapData, Backend>) -> Vec<(BackendId, Backend)> {
    let ids = (0..MAX_BACKENDS as u32).map(BackendId);
    let at = |id: BackendId| table.get(&id.0, 0).ok().filter(|backend| backend.is(Backend::PRESENT)).map(|b| (id, b));
    ids.filter_map(at).collect()
}

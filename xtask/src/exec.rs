//! Running other programs: as the user or as root, with errors that print the command.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Says what is being done, on stderr: stdout belongs to results.
pub(crate) fn step(what: impl AsRef<str>) {
    eprintln!("==> {}", what.as_ref());
}

/// The root of the workspace.
pub(crate) fn root_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is one level below the workspace's root")
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root_dir().join("target"), |directory| root_dir().join(directory))
}

/// A command in the workspace's root that finds what cargo installs, and what Debian hides from users in sbin.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root_dir()).env("PATH", path());
    // `cargo run` describes xtask to its child. Build scripts that look at these variables, as ring's does, would be run again by
    // each cargo that comes with other ones, and with them all that stands on them.
    for (name, _) in env::vars_os() {
        let described = name.to_string_lossy();
        if described.starts_with("CARGO_PKG_") || described.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The same as root: directly, or through sudo, which then has asked for its password at most once.
pub(crate) fn root_command(program: &str, why: &str) -> Result<Command> {
    ask_root(why)?;
    if is_root() {
        return Ok(command(program));
    }
    let mut sudo = command("sudo");
    sudo.args(["--preserve-env=CI,RUST_BACKTRACE,RUST_LOG", "--", program]);
    Ok(sudo)
}

/// Makes sudo ask now, with the reason in sight, and keeps its answer fresh while xtask lives.
///
/// A verb that needs root at its end calls this at its start, so that nobody has to wait for the question.
pub(crate) fn ask_root(why: &str) -> Result<()> {
    static ASKED: OnceLock<()> = OnceLock::new();
    if is_root() || ASKED.get().is_some() {
        return Ok(());
    }
    if find("sudo").is_none() {
        bail!("root is needed {why}, and there is no sudo: run this as root");
    }
    step(format!("root is needed {why}: sudo may ask for your password"));
    exec(command("sudo").arg("--validate"))?;
    ASKED.get_or_init(|| {
        thread::spawn(|| {
            loop {
                // sudo forgets after some minutes, and a first build takes longer.
                thread::sleep(Duration::from_secs(60));
                let mut refresh = command("sudo");
                refresh.args(["--non-interactive", "--validate"]).stdin(Stdio::null());
                if !refresh.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
                    return;
                }
            }
        });
    });
    Ok(())
}

/// Runs to the end; a status other than zero is an error that prints the command. The output is progress: it goes to stderr.
pub(crate) fn exec(command: &mut Command) -> Result<()> {
    let status =
        command.stdout(io::stderr()).status().with_context(|| format!("could not start: {}", line(command)))?;
    if !status.success() {
        bail!("{status}: {}", line(command));
    }
    Ok(())
}

/// Standard output of a command that must succeed.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("could not start: {}", line(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{}", output.status, line(command), stderr.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("not UTF-8: output of {}", line(command)))
}

/// Runs to the end and hands over each line of standard output as it comes.
pub(crate) fn stream(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("could not start: {}", line(command)))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    for bytes in BufReader::new(stdout).split(b'\n') {
        let bytes = bytes.with_context(|| format!("reading from {}", line(command)))?;
        on_line(String::from_utf8_lossy(&bytes).trim_end_matches('\r'));
    }
    child.wait().with_context(|| format!("waiting for {}", line(command)))
}

/// Becomes that command, so that its exit code, the terminal and Ctrl-C are its own.
pub(crate) fn replace(command: &mut Command) -> Result<Infallible> {
    let error = command.exec();
    Err(error).with_context(|| format!("could not start: {}", line(command)))
}

/// The program's file, as [`command`] would find it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&path()).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn is_root() -> bool {
    // The owner of a process's own directory is its effective user.
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let directories = cargo_home
        .map(|home| home.join("bin"))
        .into_iter()
        .chain(env::split_paths(&inherited))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    // Fails only on a directory with a colon in its name, which PATH cannot express anyway.
    env::join_paths(directories).unwrap_or(inherited)
}

/// The command as a shell would take it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_prints_the_command_as_typed() {
        let error = exec(command("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(format!("{error:#}"), "exit status: 3: sh -c 'exit 3'");
        let error = capture(command("sh").args(["-c", "echo why >&2; exit 4"])).unwrap_err();
        assert_eq!(format!("{error:#}"), "exit status: 4: sh -c 'echo why >&2; exit 4'\nwhy");
    }

    #[test]
    fn lines_arrive_one_by_one_and_the_status_last() {
        let mut lines = Vec::new();
        let status = stream(command("printf").arg("one\\r\\ntwo"), |line| lines.push(line.to_owned())).unwrap();
        assert!(status.success());
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_quote_inside_a_word_survives() {
        assert_eq!(line(Command::new("echo").args(["it's", ""])), r"echo 'it'\''s' ''");
    }
}

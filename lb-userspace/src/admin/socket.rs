//! The control socket: HTTP/1.1 on a unix socket that only its owner and group may open.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::AsFd as _,
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::{UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    path::{Path, PathBuf},
};

use log::{debug, info, warn};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, fchmod},
    },
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use super::{
    Published,
    http::{self, Answer, Peer, READ_ONLY, Reply, Verb},
    reload::Outcome,
};
use crate::{host::process, reconcile::Request};

/// For the owner and the group.
const MODE: u32 = 0o660;
/// Waiting callers; each is answered at once.
const BACKLOG: i32 = 64;
/// The longest configuration that is looked at.
const LARGEST_CONFIGURATION: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "another xvip already runs on this node: {holder} answers on {}. Stop it first (systemctl stop xvip), or give this one its own \
         admin.control_socket and dataplane.bpffs.", path.display()
    )]
    Running { path: PathBuf, holder: String },
    #[error("another xvip is starting: it holds the lock of {}. Try again when it is done.", directory.display())]
    Starting { directory: PathBuf },
    #[error("{} exists and is not a socket. Move it away, or set admin.control_socket to another path.", path.display())]
    NotASocket { path: PathBuf },
    #[error("opening the control socket {}: {source}. Set admin.control_socket to a path this process may create.", path.display())]
    Io { path: PathBuf, source: io::Error },
}

const BUSY: &str = "the daemon is busy, or ends; try again\n";

/// What a caller may ask for.
#[derive(Debug)]
pub enum Command {
    /// Hand VIPs over to another node: those of the `[[vrrp]]` of this name and of its sync group, or all.
    Release(Option<String>),
    /// Read the configuration again and follow it.
    Reload(Judgement),
    /// Say what it would do to follow this configuration.
    Compare { text: String, judgement: Judgement },
    /// Drain backends, weigh them otherwise, or take that back.
    Order { request: Request, judgement: Judgement },
    /// End, and leave the data plane to the next daemon.
    HandOver(Judgement),
}

/// Where the outcome is waited for. Dropped, it says that the daemon ends.
#[derive(Debug)]
pub struct Judgement(oneshot::Sender<Answer>);

impl Judgement {
    pub fn tell(self, outcome: &Outcome) {
        // Whoever asked may have gone.
        let _ = self.0.send(Answer::json(outcome));
    }

    /// It is done, in words.
    pub fn done(self, text: String) {
        let _ = self.0.send(Answer::text(text));
    }

    /// It cannot be done, and why.
    pub fn refuse(self, reason: &str) {
        let _ = self.0.send(Answer::conflict(reason));
    }
}

/// The bound socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl ControlSocket {
    /// Binds, after a file that a crashed daemon left behind has been removed. The directory is made if need be.
    /// Bind this before anything else is touched: it is what keeps two daemons apart.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;

        // Held over look, remove and bind: otherwise of two daemons that start at once one could remove the other's fresh socket.
        let handle = File::open(directory).map_err(failed)?;
        let _lock = Flock::lock(handle, FlockArg::LockExclusiveNonblock)
            .map_err(|_| BindError::Starting { directory: directory.to_owned() })?;
        remove_stale(path)?;
        Self::bind_fresh(path).map_err(failed)
    }

    /// Serves until it is dropped, then removes the file. What is asked for goes to `commands`.
    pub async fn serve(self, status: Published, commands: mpsc::Sender<Command>) {
        let Self { listener, file: _file } = self;
        http::serve(listener, LARGEST_CONFIGURATION, move |peer, verb, request| {
            debug!("{} {} of {peer:?}", request.method(), request.uri().path());
            match (verb, request.uri().path()) {
                (Verb::Get, "/v1/status") => Answer::json(&**status.borrow()).into(),
                (Verb::Post, "/v1/vrrp/release") => release(peer, request.uri().query(), &status, &commands).into(),
                (Verb::Post, "/v1/reload") => {
                    info!("asked by {peer:?} to reload the configuration");
                    judge(&commands, Command::Reload)
                }
                (Verb::Post, "/v1/compare") => compare(&commands, request.body()),
                (Verb::Post, "/v1/backends") => order(peer, &commands, request.body()),
                (Verb::Post, "/v1/handover") => {
                    info!("asked by {peer:?} to end and leave the data plane to another daemon");
                    judge(&commands, Command::HandOver)
                }
                (_, "/v1/status") => Answer::not_allowed(READ_ONLY).into(),
                (_, "/v1/vrrp/release" | "/v1/reload" | "/v1/compare" | "/v1/backends" | "/v1/handover") => {
                    Answer::not_allowed("POST").into()
                }
                _ => Answer::not_found(
                    "GET /v1/status, POST /v1/reload, /v1/compare, /v1/backends, /v1/handover and /v1/vrrp/release are served here\n",
                )
                .into(),
            }
        })
        .await;
    }

    fn bind_fresh(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // The mode of the descriptor becomes that of the file, less the umask: so the file is never open to others, not even
        // until the chmod that gives back what the umask took (unix_bind_bsd in net/unix/af_unix.c).
        fchmod(socket.as_fd(), Mode::from_bits_truncate(MODE))?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = SocketFile { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() };
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = UnixListener::from_std(StdListener::from(socket))?;
        info!("control socket {}", path.display());
        Ok(Self { listener, file })
    }
}

/// Passes on what is answered when it is done.
fn judge(commands: &mpsc::Sender<Command>, command: impl FnOnce(Judgement) -> Command) -> Reply {
    let (sender, answer) = oneshot::channel();
    match commands.try_send(command(Judgement(sender))) {
        Ok(()) => Reply::Later(answer),
        Err(_) => Answer::failed(BUSY).into(),
    }
}

/// The text comes along: what this daemon may read is not for everybody who may ask.
fn compare(commands: &mpsc::Sender<Command>, body: &[u8]) -> Reply {
    match std::str::from_utf8(body) {
        Ok(text) => judge(commands, |judgement| Command::Compare { text: text.to_owned(), judgement }),
        Err(error) => Answer::conflict(&format!("the configuration is not UTF-8 text: {error}\n")).into(),
    }
}

fn order(peer: Peer, commands: &mpsc::Sender<Command>, body: &[u8]) -> Reply {
    match serde_json::from_slice::<Request>(body) {
        Ok(request) => {
            info!("asked by {peer:?}: {:?} {}", request.wish, request.backends.join(", "));
            judge(commands, |judgement| Command::Order { request, judgement })
        }
        Err(error) => Answer::conflict(&format!("that is no order: {error}\n")).into(),
    }
}

/// `query` is empty or `instance=NAME`; names need no escapes.
fn release(peer: Peer, query: Option<&str>, status: &Published, commands: &mpsc::Sender<Command>) -> Answer {
    let status = status.borrow();
    if status.vrrp.is_empty() {
        return Answer::conflict("no [[vrrp]] is configured here: the VIPs do not move. Stop xvip to give them up.\n");
    }
    let wanted = query.map(|query| query.strip_prefix("instance=").unwrap_or(query));
    if let Some(wanted) = wanted.filter(|wanted| status.vrrp.iter().all(|instance| instance.name != *wanted)) {
        let names: Vec<&str> = status.vrrp.iter().map(|instance| &*instance.name).collect();
        return Answer::conflict(&format!("no [[vrrp]] here is called `{wanted}`: there is {}\n", names.join(", ")));
    }
    match commands.try_send(Command::Release(wanted.map(str::to_owned))) {
        Ok(()) => {
            info!(
                "asked by {peer:?} to hand {} over",
                wanted.map_or("the VIPs".to_owned(), |name| format!("the VIPs of {name}"))
            );
            Answer::accepted("handing over\n")
        }
        Err(_) => Answer::failed(BUSY),
    }
}

/// Removes the file, as long as it is the one that was bound.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let still_ours = fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode);
        if still_ours && let Err(e) = fs::remove_file(&self.path) {
            warn!("removing {}: {e}", self.path.display());
        }
    }
}

/// A socket whose connect is refused has no listener any more.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(there) => Err(BindError::Running { path: path.to_owned(), holder: listener(&there) }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            info!("removing {}, left by a daemon that ended without cleaning up", path.display());
            fs::remove_file(path).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Who listens at the other end, in words.
fn listener(there: &StdStream) -> String {
    match getsockopt(there, PeerCredentials) {
        Ok(credentials) if credentials.pid() > 0 => process::named(credentials.pid().cast_unsigned()),
        _ => "a process outside of this container".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixStream,
        sync::{mpsc, watch},
    };

    use super::{
        super::{
            client::{self, ClientError},
            reload::Verdict,
            status::tests::sample,
            vrrp::tests::sample_instances,
        },
        *,
    };
    use crate::reconcile::Wish;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/xvip/control.sock");
        (directory, path)
    }

    #[tokio::test]
    async fn the_client_gets_the_latest_status() {
        let (_directory, path) = directory();
        let socket = ControlSocket::bind(&path).unwrap();
        let (publish, status) = watch::channel(Arc::new(sample()));
        let serving = tokio::spawn(socket.serve(status, mpsc::channel(1).0));
        assert_eq!(client::status(&path).await.unwrap(), sample());

        publish.send_modify(|status| Arc::make_mut(status).version = "9.9.9".into());
        assert_eq!(client::status(&path).await.unwrap().version, "9.9.9");

        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        assert!(!path.exists(), "the file goes with the server");
    }

    #[tokio::test]
    async fn only_the_owner_and_the_group_may_open_it() {
        let (_directory, path) = directory();
        let _socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
    }

    #[tokio::test]
    async fn a_second_daemon_is_refused() {
        let (_directory, path) = directory();
        let _first = ControlSocket::bind(&path).unwrap();
        let message = ControlSocket::bind(&path).unwrap_err().to_string();
        let expected = format!("another xvip already runs on this node: process {} (", std::process::id());
        assert!(message.starts_with(&expected), "{message}");
        assert!(message.contains(&format!(") answers on {}. ", path.display())), "{message}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_daemon_that_is_starting_keeps_others_out() {
        let (_directory, path) = directory();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let handle = File::open(path.parent().unwrap()).unwrap();
        let lock = Flock::lock(handle, FlockArg::LockExclusive).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::Starting { .. })));
        drop(lock);
        ControlSocket::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_stale_file_is_replaced() {
        let (_directory, path) = directory();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file, as a crash does");
        assert!(matches!(client::status(&path).await, Err(ClientError::NotRunning { .. })));
        ControlSocket::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let (_directory, path) = directory();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_successors_file_is_left_alone() {
        let (_directory, path) = directory();
        let first = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = ControlSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn without_a_daemon_the_client_says_so() {
        let (_directory, path) = directory();
        assert_eq!(
            client::status(&path).await.unwrap_err().to_string(),
            format!(
                "no xvip daemon listens on {}. Start one (systemctl start xvip, or xvip run -c FILE), \
                 or name its control socket if it has another.",
                path.display()
            )
        );
    }

    #[tokio::test]
    async fn a_daemon_that_talks_otherwise_is_told_from_a_silent_one() {
        let (_directory, path) = directory();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
            stream.write_all(answer).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        });
        let error = client::status(&path).await.unwrap_err();
        assert!(matches!(&error, ClientError::Talk { reason, .. } if reason.contains("missing field")), "{error}");
        server.await.unwrap();
    }

    async fn answer(path: &Path, line: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn a_path_takes_what_it_is_for() {
        let (_directory, path) = directory();
        let socket = ControlSocket::bind(&path).unwrap();
        let (_publish, status) = watch::channel(Arc::new(sample()));
        let serving = tokio::spawn(socket.serve(status, mpsc::channel(1).0));
        for (line, expected) in [
            ("POST /v1/status", "HTTP/1.1 405 "),
            ("DELETE /v1/status", "HTTP/1.1 405 "),
            ("GET /v1/vrrp/release", "HTTP/1.1 405 "),
            ("GET /v1/reload", "HTTP/1.1 405 "),
            ("GET /v1/compare", "HTTP/1.1 405 "),
            ("GET /v1/backends", "HTTP/1.1 405 "),
            ("POST /v1/backends", "HTTP/1.1 409 "),
            ("GET /v2/status", "HTTP/1.1 404 "),
        ] {
            let response = answer(&path, line).await;
            assert!(response.starts_with(expected), "{line}: {response}");
        }
        serving.abort();
    }

    #[tokio::test]
    async fn a_release_is_passed_on_where_there_is_something_to_release() {
        let (_directory, path) = directory();
        let socket = ControlSocket::bind(&path).unwrap();
        let (publish, status) = watch::channel(Arc::new(sample()));
        let (sender, mut commands) = mpsc::channel(1);
        let serving = tokio::spawn(socket.serve(status, sender));
        let refused = client::release(&path, None).await.unwrap_err().to_string();
        assert!(refused.contains("no [[vrrp]] is configured here"), "{refused}");
        assert!(commands.try_recv().is_err());

        publish.send_modify(|status| Arc::make_mut(status).vrrp = sample_instances());
        client::release(&path, None).await.unwrap();
        assert!(matches!(commands.try_recv(), Ok(Command::Release(None))));

        let names: Vec<String> = sample_instances().into_iter().map(|instance| instance.name).collect();
        client::release(&path, Some(&names[1])).await.unwrap();
        assert!(matches!(commands.try_recv(), Ok(Command::Release(Some(name))) if name == names[1]));
        let refused = client::release(&path, Some("other")).await.unwrap_err().to_string();
        assert_eq!(refused, format!("no [[vrrp]] here is called `other`: there is {}", names.join(", ")));

        // One that waits is enough.
        client::release(&path, None).await.unwrap();
        let busy = client::release(&path, None).await.unwrap_err().to_string();
        assert!(busy.contains("the daemon is busy"), "{busy}");
        serving.abort();
    }

    #[tokio::test]
    async fn the_outcome_of_a_reload_is_waited_for() {
        let (_directory, path) = directory();
        let socket = ControlSocket::bind(&path).unwrap();
        let (_publish, status) = watch::channel(Arc::new(sample()));
        let (sender, mut commands) = mpsc::channel(1);
        let serving = tokio::spawn(socket.serve(status, sender));
        let refused = Outcome { verdict: Verdict::Refused, differences: Vec::new(), problem: Some("why".to_owned()) };
        let answering = async {
            let Some(Command::Reload(judgement)) = commands.recv().await else { panic!("a reload") };
            judgement.tell(&refused);
            let Some(Command::Compare { text, judgement }) = commands.recv().await else { panic!("a text") };
            assert_eq!(text, "[é]");
            judgement.tell(&refused);
            let Some(Command::Order { request, judgement }) = commands.recv().await else { panic!("an order") };
            assert_eq!((request.wish, request.backends.as_slice()), (Wish::Weight(3), &["m1".to_owned()][..]));
            judgement.refuse("no m1");
            // One that is dropped says so.
            assert!(matches!(commands.recv().await, Some(Command::Reload(_))));
        };
        let asking = async {
            assert_eq!(client::reload(&path).await.unwrap(), refused);
            assert_eq!(client::compare(&path, "[é]".to_owned()).await.unwrap(), refused);
            let order = Request { wish: Wish::Weight(3), backends: vec!["m1".to_owned()], persist: false };
            assert_eq!(client::order(&path, &order).await.unwrap_err().to_string(), "no m1");
            let ended = client::reload(&path).await.unwrap_err().to_string();
            assert!(ended.contains("the daemon ends"), "{ended}");
        };
        tokio::join!(answering, asking);
        serving.abort();
    }
}

//! Sockets that the service manager has bound: taken by address, and no connection is refused meanwhile.

use crate::support::admin::Admin;
use crate::support::gateway::{binary, run};
use crate::support::raw::{Client, get, request};
use crate::support::{SOON, eventually};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

#[test]
fn a_listener_takes_the_socket_that_has_its_address() {
    let directory = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (config, admin) = (directory.path().join("g.toml"), directory.path().join("admin.sock"));
    let text = format!(
        "[admin]\nlisten = \"unix:{}\"\n[log]\naccess = {{ output = \"off\" }}\n[listeners.http]\naddress = \"{address}\"\n\
         [listeners.other]\naddress = \"127.0.0.1:0\"\n\
         [routes.hello]\nmatch = {{ path = \"/hello\" }}\nfilters = [{{ respond = {{ body = \"hello\" }} }}]\n",
        admin.display()
    );
    std::fs::write(&config, text).unwrap();
    // Before the gateway is there: the connection waits in the queue of the socket.
    let mut early = Client::connect(address);
    early.send(request("GET", "/hello", &[], b""));
    // A shell stands for the service manager: descriptor 3, and the number of the process that `exec` keeps.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" run -c \"$1\"";
    let mut gateway = Command::new("sh")
        .args(["-c", script, binary(), config.to_str().unwrap()])
        .stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let answer = early.read();
    // The gateway ends; the socket does not.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(gateway.id().try_into().unwrap()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    eventually("the gateway stops", SOON, || gateway.try_wait().unwrap().is_some());
    let ended = gateway.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(answer.is_ok_and(|answer| answer.text() == "hello"), "{log}");
    assert!(ended.status.success() && log.contains("from the service manager"), "{log}");
    Client::connect(address);
    drop(socket);
    // A process that another test has begun to start has the socket as well, until it is one.
    eventually("nobody has the socket any more", SOON, || Client::try_connect(address).is_err());
}

/// Several sockets, one of them no TCP and one that nobody wants yet: each waits for the listener that has its address, through
/// reloads and an upgrade.
#[test]
fn sockets_wait_for_the_listener_that_has_their_address() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let [http, later] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let local = UnixListener::bind(path("http.sock")).unwrap();
    let [at_http, at_later] = [&http, &later].map(|socket| socket.local_addr().unwrap());
    let text = |more: &str| {
        format!(
            "[admin]\nlisten = \"unix:{}\"\n[log]\naccess = {{ output = \"off\" }}\n[listeners.http]\naddress = \"{at_http}\"\n\
             [listeners.local]\naddress = \"unix:{}\"\n{more}\
             [routes.hello]\nmatch = {{ path = \"/hello\" }}\nfilters = [{{ respond = {{ body = \"hello\" }} }}]\n",
            path("admin.sock").display(),
            path("http.sock").display(),
        )
    };
    std::fs::write(path("g.toml"), text("")).unwrap();
    let hello = request("GET", "/hello", &[], b"");
    let mut early = Client::connect(at_later);
    early.send(&hello);
    let script = "exec 3<&0 4<&1 5<&2 0</dev/null 1>/dev/null 2>\"$2\"; LISTEN_PID=$$ LISTEN_FDS=3 exec \"$0\" run -c \"$1\"";
    let child = Command::new("sh")
        .args(["-c", script, binary()])
        .args([path("g.toml"), path("log")])
        .stdin(Stdio::from(OwnedFd::from(http.try_clone().unwrap())))
        .stdout(Stdio::from(OwnedFd::from(local.try_clone().unwrap())))
        .stderr(Stdio::from(OwnedFd::from(later.try_clone().unwrap())))
        .spawn()
        .unwrap();
    let mut first = Ended(child);
    let admin = Admin::parse(&format!("unix:{}", path("admin.sock").display()));
    let log = || std::fs::read_to_string(path("log")).unwrap_or_default();
    let over_unix = || {
        let mut stream = UnixStream::connect(path("http.sock")).unwrap();
        stream.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.ends_with("hello")
    };
    let verb = |verb: &str| {
        let ended = run(&[verb, "--admin", &admin.argument()]);
        assert_eq!(ended.code, Some(0), "{ended:?}\n{}", log());
    };
    let serves = || get(at_http, "/hello").text() == "hello" && over_unix();
    assert!(serves(), "{}", log());
    eventually("both are told", SOON, || log().matches("from the service manager").count() == 2);
    // Nobody has this address, and the connection waits.
    verb("upgrade");
    assert!(serves(), "{}", log());
    std::fs::write(path("g.toml"), text(&format!("[listeners.later]\naddress = \"{at_later}\"\n"))).unwrap();
    verb("reload");
    assert_eq!(early.response().text(), "hello", "{}", log());
    drop(early);
    assert!(serves() && get(at_later, "/hello").text() == "hello");
    // A listener that goes gives up its place, not the service manager's socket: it may come back, also after an upgrade without it.
    let with = text(&format!("[listeners.later]\naddress = \"{at_later}\"\n"));
    for between in [None, Some("upgrade")] {
        std::fs::write(path("g.toml"), text("")).unwrap();
        verb("reload");
        if let Some(between) = between {
            verb(between);
        }
        let mut waits = Client::connect(at_later);
        waits.send(&hello);
        std::fs::write(path("g.toml"), &with).unwrap();
        verb("reload");
        assert_eq!(waits.response().text(), "hello", "{}", log());
    }
    std::fs::write(path("g.toml"), text("")).unwrap();
    verb("reload");
    let successor: serde_json::Value = admin.get("/status").json();
    let successor = nix::unistd::Pid::from_raw(successor["pid"].as_i64().unwrap().try_into().unwrap());
    nix::sys::signal::kill(successor, nix::sys::signal::Signal::SIGTERM).unwrap();
    eventually("both processes have ended", SOON, || {
        first.0.try_wait().unwrap().is_some() && nix::sys::signal::kill(successor, None).is_err()
    });
    assert!(path("http.sock").exists(), "the file is the service manager's");
    Client::connect(at_later);
}

/// Killed when the test ends, however it does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

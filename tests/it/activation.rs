//! Sockets that the service manager has bound: taken by address, and no connection is refused meanwhile.

use crate::support::raw::{Client, request};
use crate::support::{SOON, eventually};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

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
        .args(["-c", script, env!("CARGO_BIN_EXE_gatewright"), config.to_str().unwrap()])
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

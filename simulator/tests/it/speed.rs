//! The simulator must not be the bottleneck of a storm. Run it alone, in a release build:
//! `cargo test --release -p backstay-simulator --test it -- --ignored --nocapture simple_calls`

use std::time::{Duration, Instant};

use axum::body::Body;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::client::site;

/// Signed calls of listZones, each checked and answered in full, over connections that stay open.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures: alone, in a release build"]
async fn simple_calls_are_answered_at_ten_thousand_a_second_at_least() {
    let site = site(|state| state.settings.pace = 0.0).await;
    // One signature for all: making them is the client's cost, checking them is the server's.
    let path = format!("/client/api?{}", site.cloud.signed("listZones", &[]));
    let address = site.cloud.address.clone();
    let took = Duration::from_secs(5);
    let worked = cpu_seconds();
    let clients = (0..16).map(|_| {
        let (path, address) = (path.clone(), address.clone());
        tokio::spawn(async move {
            let stream = TcpStream::connect(&address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let until = Instant::now() + took;
            let mut calls = 0_u64;
            while Instant::now() < until {
                let request =
                    hyper::Request::get(&path).header("host", &address).body(Body::empty()).unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                axum::body::to_bytes(Body::new(response.into_body()), 1 << 20).await.unwrap();
                calls += 1;
            }
            calls
        })
    });
    let mut calls = 0;
    for client in clients.collect::<Vec<_>>() {
        calls += client.await.unwrap();
    }
    let a_second = calls as f64 / took.as_secs_f64();
    let of_work = calls as f64 / (cpu_seconds() - worked);
    println!("{a_second:.0} calls of listZones a second over 16 connections, the clients on the same cores;");
    println!("{of_work:.0} for each second of one core, server and clients together");
    assert!(a_second >= 10_000.0, "{a_second:.0}");
}

/// What this process has worked so far. It is what a machine that others use too does not change.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

//! `weft sidecar`: the proxy beside one instance of a service.

use std::process::ExitCode;
use std::sync::Arc;

use weft_dataplane::discovery::Resolver;
use weft_dataplane::plan::services::INGRESS;
use weft_dataplane::{dial, node};
use weft_runtime::config::watched;
use weft_sidecar::{Reporting, report};

use crate::config::Reader;
use crate::pages;
use crate::role::{self, ProxyFlags, Running, Start, Taken};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service beside which it stands, by its name under `services`
    #[arg(long)]
    service: String,
    #[command(flatten)]
    flags: ProxyFlags,
}

impl Args {
    /// Reads and checks the file as the sidecar of this service.
    pub(crate) fn start(&self) -> Result<Start, ExitCode> {
        let service = &self.service;
        role::start(&self.flags.flags, Reader::Sidecar { service })
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    match args.start() {
        Ok(start) => role::run(start, move |start, running| work(&args, start, running)),
        Err(code) => code,
    }
}

/// Starts the sidecar's tasks; what it gives is the data path.
pub(crate) fn work(
    args: &Args,
    mut start: Start,
    running: &mut Running,
) -> Result<impl Future<Output = Result<(), String>> + Send + use<>, String> {
    let token = args.flags.token()?;
    let resolver = Arc::clone(&start.checked.resolver);
    let source = role::identity_source(running, &start.checked, &args.service, &resolver, token)?
        .ok_or("there is neither a CA nor an identity")?;
    let design = start
        .checked
        .sidecar
        .take()
        .ok_or("this file has no such sidecar")?;
    let (publisher, designs) = watched(design);
    pages::add(running);
    role::follow(running, &start, move |checked| {
        checked.sidecar.map(|design| publisher.publish(design));
        Taken::HandedOn
    });
    let reporting = reporting(&start, &args.service, &resolver)?;
    let (process, size) = (running.process.clone(), args.flags.size());
    let held = process.drain.guard();
    let listening = node::not_listening(&process);
    let outbound_open = process.clone();
    Ok(async move {
        let Some(identity) = node::identity(&outbound_open, source).await else {
            return Ok(());
        };
        drop(held);
        Box::pin(weft_sidecar::run(
            process, size, resolver, designs, identity, reporting, listening,
        ))
        .await
    })
}

fn reporting(
    start: &Start,
    service: &str,
    resolver: &Arc<Resolver>,
) -> Result<Option<Reporting>, String> {
    let Some(collector) = &start.checked.file.collector else {
        return Ok(None);
    };
    let settings = report::Settings {
        address: collector.address.clone(),
        interval: collector.interval.as_duration(),
        service: service.to_owned(),
        instance: start.instance(service),
        run: report::draw_run(),
    };
    let (resolver, address) = (Arc::clone(resolver), collector.address.clone());
    let dial: report::Dial = Arc::new(move || {
        let (resolver, address) = (Arc::clone(&resolver), address.clone());
        Box::pin(async move {
            let addresses = node::lookup(&resolver, &address).await?;
            let (stream, _) = dial::connect(&dial::interleave(addresses)).await?;
            Ok(stream)
        })
    });
    let collector =
        weft_dataplane::identity::SpiffeId::for_service(&start.checked.trust_domain, INGRESS)
            .map_err(|error| error.to_string())?;
    Ok(Some(Reporting {
        settings,
        collector,
        dial,
    }))
}

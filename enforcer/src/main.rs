//! The `enforcer` daemon and command line.
use aya::programs::*;
fn main() {
    let e = enforcer::kernel::load::open(&Default::default(), 1);
    let mut e = match e { Ok(e)=>e, Err(e)=>{ println!("{e:?}"); std::process::exit(1)} };
    let btf = aya::Btf::from_sys_fs().unwrap();
    for (n,p) in e.programs_mut() { if std::env::args().nth(1).is_some_and(|a| a != n) {continue} 
        let n = n.to_owned();
        let r = match p { Program::Lsm(p)=>p.load(&n,&btf), Program::BtfTracePoint(p)=>p.load(&n,&btf), Program::CgroupSockAddr(p)=>p.load(), Program::CgroupSkb(p)=>p.load(), Program::SockOps(p)=>p.load(), _=>panic!() };
        match r { Ok(())=>println!("{n} verified {:?}", p.info().ok().and_then(|i| i.verified_instruction_count())), Err(e)=>{ let s=format!("{e:?}"); let s=s.replace("\\n","\n"); println!("{n} ERR {}", &s[s.len().saturating_sub(2500)..]) } }
    }
    match enforcer::kernel::load::attach(&mut e) { Ok(())=>println!("attached"), Err(e)=>println!("{e:?}") }
    std::thread::sleep(std::time::Duration::from_secs(2));
}

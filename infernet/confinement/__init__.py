"""What processes that strangers' bytes reach are kept from, by the kernel: files, network, other programs.

`landlock` and `seccomp` are the two means, `profiles` says who gets what. All of it is Linux's; elsewhere only limits
hold, and what `infernet.host.hardening` gives up.
"""

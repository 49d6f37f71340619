# Written by scripts/release for Infernet @VERSION@.
class Infernet < Formula
  desc "One peer-to-peer inference market out of GPUs anywhere"
  homepage "@REPOSITORY@"
  version "@VERSION@"
  license "MIT"

@PLATFORMS@
  def install
    bin.install Dir["infernet-*"].first => "infernet"
  end

  service do
    run [opt_bin/"infernet", "start", "--foreground", "--log-to-file"]
    keep_alive successful_exit: false
  end

  test do
    ENV["INFERNET_HOME"] = testpath/"home"
    assert_match version.to_s, shell_output("#{bin}/infernet version")
  end
end

// Loaded before everything else: js-libp2p wants Promise.withResolvers, which Node has from version 22 on.
Promise.withResolvers ??= function withResolvers() {
  const parts = {}
  parts.promise = new this((resolve, reject) => Object.assign(parts, { resolve, reject }))
  return parts
}

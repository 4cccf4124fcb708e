# Completion of `moe` in fish.
function __moe_complete
    set -l words (commandline -opc)
    env _MOE_COMPLETE=fish $words (commandline -ct | string collect --allow-empty) 2>/dev/null
end
complete -c moe -f -k -a '(__moe_complete)'
complete -c moe-cli -f -k -a '(__moe_complete)'

<#
.SYNOPSIS
    Three nodes on Hyper-V: creates and starts what is missing, and waits until the set answers.
.DESCRIPTION
    Does nothing twice: what is there already stays as it is. -DryRun prints what would be done and asks Hyper-V nothing.
    The directory SEED is made from set.toml by trilith-seed, a Linux program: any Linux machine will do, or WSL.
.EXAMPLE
    .\hyperv.ps1 up seed trilith-0.1.0.vhdx.zip
.EXAMPLE
    .\hyperv.ps1 status seed
.EXAMPLE
    .\hyperv.ps1 down seed
    Removes the machines and their disks.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true, Position = 0)]
    [ValidateSet('up', 'down', 'status')]
    [string] $What,

    # The directory that trilith-seed made.
    [Parameter(Mandatory = $true, Position = 1)]
    [string] $Seed,

    # The disk: the zip as it was downloaded, or the VHDX in it. For `up` only.
    [Parameter(Position = 2)]
    [string] $Disk,

    [switch] $DryRun
)

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

# A first boot takes some seconds on hardware of today, a minute on a host that is loaded.
$DeadlineSeconds = 300

function Main {
    $planFile = Join-Path -Path $Seed -ChildPath 'deploy.json'
    if (-not (Test-Path -LiteralPath $planFile)) {
        throw "There is no ${planFile}: make it by 'trilith-seed set.toml $Seed'."
    }
    $plan = Get-Content -LiteralPath $planFile -Raw -Encoding UTF8 | ConvertFrom-Json
    if ($null -eq $plan.hyperv) {
        throw 'set.toml has no [hyperv]: add it, then run trilith-seed again.'
    }
    if ($What -eq 'status' -and $DryRun) {
        throw 'status changes nothing that a dry run could leave out.'
    }
    if (-not $DryRun) {
        Assert-Command -Name 'Get-VM' -Feature 'Hyper-V-PowerShell'
        if ($plan.hyperv.cluster) { Assert-Command -Name 'Get-ClusterGroup' -Feature 'RSAT-Clustering-PowerShell' }
    }
    switch ($What) {
        'up' {
            $vhdx = Expand-Disk
            foreach ($node in $plan.nodes) { Add-Node -Plan $plan -Node $node -Vhdx $vhdx }
            if ($plan.hyperv.cluster) { Add-AntiAffinity -Plan $plan }
            foreach ($node in $plan.nodes) { Start-Node -Plan $plan -Node $node }
            Wait-Set -Plan $plan
        }
        'down' {
            foreach ($node in $plan.nodes) { Remove-Node -Plan $plan -Node $node }
        }
        'status' {
            foreach ($node in $plan.nodes) {
                $vm = Find-Node -Plan $plan -Node $node
                $state = if ($null -eq $vm) { 'not there' } else { $vm.State }
                "$($node.machine)`t$state"
            }
        }
    }
}

# The VHDX: unpacked beside the zip, unless it is there already.
function Expand-Disk {
    if (-not $Disk) { throw "Say which disk: .\hyperv.ps1 up $Seed trilith-VERSION.vhdx.zip" }
    if (-not (Test-Path -LiteralPath $Disk)) { throw "There is no file $Disk." }
    if ($Disk -notlike '*.zip') { return (Resolve-Path -LiteralPath $Disk).Path }
    $zip = Get-Item -LiteralPath $Disk
    $vhdx = Join-Path -Path $zip.DirectoryName -ChildPath $zip.BaseName
    if (-not (Test-Path -LiteralPath $vhdx)) {
        Invoke-Step "unpack $($zip.Name)" { Expand-Archive -LiteralPath $zip.FullName -DestinationPath $zip.DirectoryName }
    }
    return $vhdx
}

function Add-Node {
    param($Plan, $Node, [string] $Vhdx)

    $settings = $Plan.hyperv
    $name = $Node.machine
    if ($null -ne (Find-Node -Plan $Plan -Node $Node)) {
        Write-Host "$name is there already"
        return
    }
    $at = Get-Place -Plan $Plan -Node $Node
    # Windows' own rules for paths, wherever this is tried out.
    $directory = $settings.path.TrimEnd('\') + '\' + $name
    $diskPath = "$directory\$name.vhdx"
    $isoPath = "$directory\$name-seed.iso"
    $iso = Join-Path -Path $Seed -ChildPath $Node.iso
    Invoke-Step "copy disk and seed of $name to $directory" {
        Copy-ToHost -At $at -From $Vhdx -To $diskPath
        Copy-ToHost -At $at -From $iso -To $isoPath
    }
    $whole = $false
    try {
        Invoke-Step "create $name" {
            $null = New-VM @at -Name $name -Generation 2 -Path $settings.path -VHDPath $diskPath `
                -SwitchName $settings.switch -MemoryStartupBytes ($settings.memory_mib * 1mb)
        }
        Invoke-Step "configure $name" {
            # Memory is fixed: a gateway that has to ask for it is late.
            Set-VM @at -Name $name -ProcessorCount $settings.processors -StaticMemory -CheckpointType Disabled `
                -AutomaticStartAction Start -AutomaticStartDelay 0 -AutomaticStopAction ShutDown
            # Windows Server 2016 has none.
            if ((Get-Command -Name 'Set-VM').Parameters.ContainsKey('AutomaticCheckpointsEnabled')) {
                Set-VM @at -Name $name -AutomaticCheckpointsEnabled $false
            }
            Add-VMDvdDrive @at -VMName $name -Path $isoPath
            $first = Get-VMHardDiskDrive @at -VMName $name
            if ($settings.secure_boot -eq 'off') {
                Set-VMFirmware @at -VMName $name -EnableSecureBoot Off -FirstBootDevice $first
            }
            else {
                Set-VMFirmware @at -VMName $name -EnableSecureBoot On -SecureBootTemplate $settings.secure_boot -FirstBootDevice $first
            }
            if ($settings.vlan -ne 0) {
                Set-VMNetworkAdapterVlan @at -VMName $name -Access -VlanId $settings.vlan
            }
            # The clock is NTP's alone. The service's name is translated on some systems, its identity is not.
            Get-VMIntegrationService @at -VMName $name |
                Where-Object -FilterScript { $_.Id -like '*2497F4DE-E9FA-4204-80E4-4B75C46419C0' } |
                Disable-VMIntegrationService
        }
        $whole = $true
    }
    finally {
        # The next run takes a machine that is there for a whole one. This is done after Ctrl-C as well.
        if (-not $whole) {
            $half = Find-Node -Plan $Plan -Node $Node
            if ($null -ne $half) { Remove-VM -VM $half -Force }
        }
    }
}

# Failover clusters keep roles of one class on different hosts as long as there are enough.
function Add-AntiAffinity {
    param($Plan)

    foreach ($node in $Plan.nodes) {
        Invoke-Step "keep $($node.machine) apart from the other nodes" {
            $group = Get-ClusterGroup -Name $node.machine -ErrorAction SilentlyContinue
            if ($null -eq $group) { $group = Add-ClusterVirtualMachineRole -VMName $node.machine }
            $classes = New-Object -TypeName System.Collections.Specialized.StringCollection
            $null = $classes.Add("trilith-$($Plan.set)")
            $group.AntiAffinityClassNames = $classes
        }
    }
}

function Start-Node {
    param($Plan, $Node)

    $vm = Find-Node -Plan $Plan -Node $Node
    if ($null -ne $vm -and $vm.State -eq 'Running') {
        Write-Host "$($Node.machine) runs already"
        return
    }
    $at = Get-Place -Plan $Plan -Node $Node
    Invoke-Step "start $($Node.machine)" { Start-VM @at -Name $Node.machine }
}

function Remove-Node {
    param($Plan, $Node)

    $name = $Node.machine
    $at = Get-Place -Plan $Plan -Node $Node
    $directory = $Plan.hyperv.path.TrimEnd('\') + '\' + $name
    if (-not $DryRun -and $null -eq (Find-Node -Plan $Plan -Node $Node)) {
        Write-Host "$name is not there"
    }
    else {
        Invoke-Step "stop and remove $name" {
            if ($Plan.hyperv.cluster) {
                Remove-ClusterGroup -Name $name -RemoveResources -Force -ErrorAction SilentlyContinue
            }
            Stop-VM @at -Name $name -TurnOff -Force
            Remove-VM @at -Name $name -Force
        }
    }
    # Also those of a machine that was removed before.
    $remove = { param($gone) if (Test-Path -LiteralPath $gone) { Remove-Item -LiteralPath $gone -Recurse -Force } }
    Invoke-Step "remove the files in $directory" {
        if ($at.Count -eq 0) {
            & $remove $directory
        }
        else {
            Invoke-Command @at -ScriptBlock $remove -ArgumentList $directory
        }
    }
}

# Which host a node is on, as parameters: none for this one. A role of the cluster is where that has put it.
function Get-Place {
    param($Plan, $Node)

    if ($Plan.hyperv.cluster -and -not $DryRun) {
        $group = Get-ClusterGroup | Where-Object -FilterScript { $_.Name -eq $Node.machine }
        if ($null -ne $group) { return @{ ComputerName = $group.OwnerNode.Name } }
    }
    if ([string]::IsNullOrEmpty($Node.host)) { return @{} }
    return @{ ComputerName = $Node.host }
}

# The machine of a node; nothing when there is none, or in a dry run. All are asked for, because one that is not there and a host that
# does not answer are the same error otherwise.
function Find-Node {
    param($Plan, $Node)

    if ($DryRun) { return $null }
    $at = Get-Place -Plan $Plan -Node $Node
    return Get-VM @at | Where-Object -FilterScript { $_.Name -eq $Node.machine }
}

function Copy-ToHost {
    param([hashtable] $At, [string] $From, [string] $To)

    $directory = Split-Path -Path $To -Parent
    if ($At.Count -eq 0) {
        $null = New-Item -ItemType Directory -Path $directory -Force
        Copy-Item -LiteralPath $From -Destination $To
        return
    }
    $session = New-PSSession @At
    try {
        Invoke-Command -Session $session -ScriptBlock { param($made) $null = New-Item -ItemType Directory -Path $made -Force } `
            -ArgumentList $directory
        Copy-Item -LiteralPath $From -Destination $To -ToSession $session
    }
    finally {
        Remove-PSSession -Session $session
    }
}

# The set answers when its first VIP takes a connection on its first service's port.
function Wait-Set {
    param($Plan)

    $vip = @($Plan.vips)[0]
    if ($DryRun) {
        Write-Host "would wait for $vip port $($Plan.port)"
        return
    }
    Write-Host "waiting for $vip port $($Plan.port), for at most $DeadlineSeconds seconds"
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $client = New-Object -TypeName System.Net.Sockets.TcpClient
        try {
            if ($client.ConnectAsync($vip, $Plan.port).Wait(2000)) { break }
        }
        catch [System.AggregateException] {
            Write-Verbose -Message $_.Exception.InnerException.Message
        }
        finally {
            $client.Dispose()
        }
        if ($watch.Elapsed.TotalSeconds -gt $DeadlineSeconds) {
            throw "$vip port $($Plan.port) does not answer: look at the nodes' consoles, which say what is wrong."
        }
        Start-Sleep -Seconds 1
    }
    Write-Host "$vip port $($Plan.port) answers, after $([int] $watch.Elapsed.TotalSeconds) seconds"
}

function Assert-Command {
    param([string] $Name, [string] $Feature)

    if (-not (Get-Command -Name $Name -ErrorAction SilentlyContinue)) {
        throw "The command $Name is not installed: Install-WindowsFeature $Feature"
    }
}

# Does something, or says what would be done. What it does sees the variables of this function before those of its own, as every
# function's of PowerShell: so these have names that no other has.
function Invoke-Step {
    param([string] $StepInWords, [scriptblock] $StepToDo)

    if ($DryRun) {
        Write-Host "+ $StepInWords"
    }
    else {
        Write-Host $StepInWords
        & $StepToDo
    }
}

Main
